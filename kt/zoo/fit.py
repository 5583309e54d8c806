"""Fit of a checkpoint to an architecture: which tensors are which, by name and shape, without torch.

Training scripts wrap weights in dictionaries and modules, save averages beside them, and leave out what is counted or
computed again. Here every dictionary of a file and every prefix of its names is tried; the weights are those that fit
completely. Of several sets that fit, the averaged ones go first, then those under the usual names (``USUAL``); where
that does not tell, the file is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kt.errors import KtError, listed
from kt.zoo.header import Header, clip
from kt.zoo.pickled import Entry

WRAPPING = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Words that data parallelism, torch.compile and checkpointing put into names, at any place."""

AVERAGED = frozenset(["ema", "average", "averaged", "swa", "shadow"])
"""Words in the name of weights that are averaged over steps."""

USUAL = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "backbone",
    "encoder",
)
"""Names under which training scripts keep a model's own weights, the first before the others."""

COUNTED = frozenset(["num_batches_tracked", "n_averaged", "total_ops", "total_params"])
"""Buffers that count; no output depends on them."""

FIXED = frozenset(["relative_position_index", "relative_coords_table", "attn_mask", "attention_bias_idxs"])
"""Buffers that an architecture computes from its sizes, saved by some versions of it and not by others."""

COMPUTED = FIXED | {"bands", "freqs", "freqs_cis", "freqs_cos", "freqs_sin", "inv_freq", "periods", "position_ids"}
"""Buffers that an architecture computes from its sizes, where it has them as buffers."""

TRAINING = frozenset(["criterion", "loss", "loss_fn"])
"""Modules that training scripts keep beside a model in one dictionary."""

FLOATING = frozenset(["float32", "float16", "bfloat16", "float64"])
WHOLE = frozenset(["int64", "int32", "int16", "int8", "uint8"])


@dataclass(frozen=True)
class Slot:
    """A tensor of an architecture.

    Attributes:
        shape: None stands for as many as there are outputs.
        buffer: whether it is a buffer, not a parameter.
        kind: `floating`, `whole`, `complex` or `bool`.
        same: the name of a tensor before it that is the very same (tied weights).
        more: how many more than outputs there are where the shape has None, as in heads with a class for nothing.
    """

    shape: tuple[int | None, ...]
    buffer: bool = False
    kind: str = "floating"
    same: str | None = None
    more: int = 0

    def full(self, outputs: int | None) -> tuple[int | None, ...]:
        """The shape with so many outputs."""
        return tuple((outputs and outputs + self.more) if side is None else side for side in self.shape)

    def outputs(self, given: tuple[int, ...]) -> list[int]:
        """Outputs of a head that has such a tensor, one number for each None of the shape."""
        if len(self.shape) != len(given):
            return []
        return [size - self.more for side, size in zip(self.shape, given, strict=True) if side is None]


Outline = Mapping[str, Slot]
"""All tensors of an architecture by name."""


@dataclass(frozen=True)
class Fit:
    """Fit of a checkpoint to an architecture.

    Attributes:
        place: the keys and the prefix below which the weights lie, "" where they lie bare.
        entries: the file's tensor for each of the architecture's names that it fills.
        outputs: of its head, None where it has none.
        left: other tensors of the same dictionary, by group.
        others: places of other sets of weights that fit, or nearly do.
    """

    place: str
    entries: dict[str, Entry]
    outputs: int | None
    left: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass
class _Try:
    """One set of names of a file under one prefix, against an architecture."""

    at: tuple[str, ...]
    prefix: str
    entries: dict[str, Entry]
    missing: list[str] = field(default_factory=list)
    headless: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    outputs: int | None = None

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong)

    @property
    def place(self) -> str:
        keys = [f"`{'.'.join(map(clip, self.at))}`"] if self.at else []
        return ", ".join([*keys, *([f"prefix `{clip(self.prefix)}`"] if self.prefix else [])])

    @property
    def rank(self) -> tuple[bool, int]:
        words = [*self.at, *filter(None, self.prefix.split("."))]
        own = [word for word in words if word not in WRAPPING]
        ranks = [USUAL.index(word) if word in USUAL else len(USUAL) for word in own]
        return not self.averaged, max(ranks, default=-1)

    @property
    def averaged(self) -> bool:
        return _averaged((*self.at, self.prefix))


def fit(header: Header, outline: Outline, new_head: bool = False) -> Fit:
    """The weights of an architecture in a checkpoint.

    Args:
        header: of the file.
        outline: of the architecture.
        new_head: whether the head may be missing, since a fresh one will be trained.

    Raises:
        KtError: no set of weights fits, or several do and their names do not tell which is meant; without the path.
    """
    tries = [attempt for at, named in header.sets() for attempt in _tries(at, named, outline)]
    whole = [attempt for attempt in tries if attempt.fits and (new_head or not attempt.headless)]
    if not whole:
        raise KtError(_closest(tries, outline, header))
    best = min(attempt.rank for attempt in whole)
    chosen, *rivals = [attempt for attempt in whole if attempt.rank == best]
    if rival := next((rival for rival in rivals if rival.entries != chosen.entries), None):
        raise KtError(
            f"two sets of weights fit ({_where(chosen)} and {_where(rival)}), and their names do not tell which is "
            "meant; save one of them to a file of its own"
        )
    _check_numbers(chosen, outline)
    near = [a for a in tries if a.averaged and not chosen.averaged and not a.fits and len(a.missing) < len(outline) / 2]
    unused = [a for a in whole if a is not chosen and a.entries != chosen.entries]
    others = [_where(attempt) for attempt in unused] + [f"{_where(a)} (it lacks {_names(a.missing)})" for a in near]
    if not chosen.averaged:
        others += [f"`{'.'.join(map(clip, at))}` (it has no names)" for at in header.lists() if _averaged(at)]
    return Fit(chosen.place, chosen.entries, chosen.outputs, tuple(_groups(chosen.left)), tuple(others))


def _averaged(words: Iterable[str]) -> bool:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", ".".join(words))  # `modelEma`, `EMAModel`
    return bool(AVERAGED & set(re.split(r"[^a-z]+", apart.lower())))


def check_head(has: int | None, needs: int, new_head: bool) -> None:
    """Fail where a head has another number of outputs than is needed, and no new one is trained; None if not known.

    Raises:
        KtError: with what helps.
    """
    if has in (None, needs) or new_head:
        return
    more = "; where output 0 is a background class, give labels from 1 in `data.classes`" if has == needs + 1 else ""
    text = f"its head has {has} outputs, but {needs} are needed"
    raise KtError(f"{text}; give `finetune` for a new head, or leave the model out{more}")


def _where(attempt: _Try) -> str:
    return attempt.place or "those without a prefix"


def _tries(at: tuple[str, ...], named: Mapping[str, Any], outline: Outline) -> list[_Try]:
    """A try for every prefix under which some of the names lie; the names as they are where none does."""
    inside = {word for name in outline for word in name.split(".")}
    drop = [word for word in WRAPPING if word not in inside]
    plain: dict[str, tuple[str, Any]] = {}
    for name, item in named.items():
        short = ".".join(word for word in name.split(".") if word not in drop)
        if short in plain:  # two names become one: such names are no wrapper's
            plain = {other: (other, value) for other, value in named.items()}
            break
        plain[short] = (name, item)
    votes: Counter[str] = Counter()
    for name in plain:
        words = name.split(".")
        votes.update({".".join(words[:i]) for i in range(len(words)) if ".".join(words[i:]) in outline})
    most = max(votes.values(), default=0)
    prefixes = [prefix for prefix, count in votes.items() if 2 * count >= most] or [""]
    return [_attempt(at, f"{prefix}." if prefix else "", plain, outline) for prefix in prefixes]


def _attempt(at: tuple[str, ...], prefix: str, plain: Mapping[str, tuple[str, Any]], outline: Outline) -> _Try:
    below = {name.removeprefix(prefix): item for name, (_, item) in plain.items() if name.startswith(prefix)}
    found = {name: below[name] for name in outline if isinstance(below.get(name), Entry)}
    heads = {name: slot for name, slot in outline.items() if None in slot.shape}
    made = _Try(at, prefix, found)
    made.left = [
        whole for name, (whole, item) in plain.items() if isinstance(item, Entry) and not name.startswith(prefix)
    ]
    counts = Counter(size for name, slot in heads.items() if name in found for size in slot.outputs(found[name].shape))
    made.outputs = counts.most_common(1)[0][0] if counts else None
    full = {name: slot.full(made.outputs) for name, slot in outline.items()}
    made.wrong = [
        f"{clip(name)} is {list(entry.shape) if entry.key else entry.dtype}, not {list(full[name])}"
        for name, entry in found.items()
        if entry.shape != full[name]
    ]
    present = {slot.same or name for name, slot in outline.items() if name in found}
    lacking = [name for name in outline if name not in found and (outline[name].same or name) not in present]
    made.missing = [name for name in lacking if not (outline[name].buffer and _leaf(name) in COUNTED | COMPUTED)]
    if heads and not any(name in found for name in heads):
        made.headless = [name for name in made.missing if name in heads]
        made.missing = [name for name in made.missing if name not in heads]
    replaced = tuple({f"{name.rpartition('.')[0]}." for name in made.headless if "." in name})
    for name, item in below.items():
        if name in found or not isinstance(item, Entry) or _leaf(name) in COUNTED | FIXED:
            continue
        if name.partition(".")[0] in TRAINING or (replaced and name.startswith(replaced)):
            made.left.append(plain[f"{prefix}{name}"][0])
        else:
            made.unexpected.append(name)
    return made


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _check_numbers(chosen: _Try, outline: Outline) -> None:
    """Fail where a tensor has another kind of numbers, as quantised weights do; halves become singles when loaded."""
    kinds = {"floating": FLOATING, "whole": WHOLE, "bool": {"bool"}, "complex": {"complex64", "complex128"}}
    counted = {"floating": FLOATING | WHOLE, "whole": FLOATING | WHOLE}
    wrong = [
        f"{clip(name)} is {entry.dtype}"
        for name, entry in chosen.entries.items()
        if entry.dtype not in (counted if _leaf(name) in COUNTED else kinds).get(outline[name].kind, ())
    ]
    if wrong:
        raise KtError(
            f"{len(wrong)} tensors have other numbers than the model's, as quantised weights do: {wrong[0]}; "
            "save the weights as float32"
        )


def _closest(tries: list[_Try], outline: Outline, header: Header) -> str:
    """Missing and superfluous names of the set of weights that fits best."""
    best = min(tries, key=lambda a: (len(a.missing) + len(a.wrong) + len(a.headless), len(a.unexpected)))
    place = f" (closest: {best.place})" if best.place and best.entries else ""
    beside = f"; beside it {_names(best.left)}" if best.left and best.entries else ""
    if best.fits:
        head = f"its weights{place} have no head (missing {_names(best.headless)}{beside})"
        return f"{head}; give `finetune` for a fresh one"
    if best.wrong and not best.missing and not best.unexpected:
        return f"{len(best.wrong)} tensors have another shape than the model's{place}: {best.wrong[0]}"
    shard = re.search(r"-0*(\d+)-of-0*(\d+)\.", header.path.name)
    part = f"; it is part {shard[1]} of {shard[2]}: join the parts to one file" if shard else ""
    missing, unexpected = _names([*best.missing, *best.headless]), _names(best.unexpected)
    return f"not this model's weights{place}: missing {missing}; unexpected {unexpected}{beside}{part}"


def _names(names: Iterable[str]) -> str:
    return listed(sorted(map(clip, names))) or "none"


def _groups(names: Iterable[str]) -> list[str]:
    """Names by their first word, with their number."""
    groups = Counter(name.partition(".")[0] for name in names)
    return [f"{clip(name)} ({count} tensors)" if count > 1 else clip(name) for name, count in sorted(groups.items())]
