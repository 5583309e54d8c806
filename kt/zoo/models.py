"""Zoo members as torch modules: build them, measure them without data, and list what timm has.

The listing runs as a process of its own, since importing timm takes seconds and hundreds of megabytes.
``python -m kt.zoo.models models OUT [MODULE …]`` writes every architecture and pretrained tag as JSON, ``… sizes …``
the sizes of the tags whose names it reads from standard input, ``… outlines …`` the tensors of architectures, and
``… probes …`` sizes and answers of networks for segmentation; ``kt.zoo.registry`` runs these and keeps what they write.
``python -m kt.zoo.models table kt/zoo/sizes.csv`` makes a table of all sizes for the timm that is installed: once, in
about eight minutes of one core.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_deprecated_models, get_pretrained_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kt.errors import KtError, listed, nearest
from kt.zoo import segmentation
from kt.zoo.fit import Slot

segmentation.register()

SIZES = ("params", "macs", "feature_width")

PLAIN = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes", "license", "hf_hub_id")
"""Settings of a pretrained tag that are listed as timm has them."""

OF_STUDY = ("self", "args", "kwargs", "pretrained", "num_classes", "in_chans")
"""Parameters of architectures that ``args`` does not set."""

OUTPUTS = (1009, 1013)
"""Two numbers of outputs that distinguish a head from the rest of an architecture: no other width is one of them."""


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, which register their models with timm.

    Raises:
        KtError: a module fails to import.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            raise KtError(f"zoo.modules: {module}: fails to import ({type(error).__name__}: {error})") from error


def build(arch: str, args: dict[str, Any], outputs: int, channels: int, pretrained: bool = False) -> nn.Module:
    """An architecture with fresh weights, drawn from torch's global generator, or with those that timm publishes.

    Raises:
        KtError: timm refuses the arguments.
    """
    given = {"in_chans": channels, **args}
    try:
        model: nn.Module = timm.create_model(arch, pretrained=pretrained, num_classes=outputs, **given)
    except Exception as error:  # an architecture may raise anything
        if pretrained and not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
            raise
        why = _refused(arch, args, outputs, channels, error)
        raise KtError(f"zoo: {arch} cannot be built with {args}: {why}") from error
    return model


def _refused(arch: str, args: Mapping[str, Any], outputs: int, channels: int, error: Exception) -> str:
    """Why an architecture cannot be built: the argument without which it can, where it is one, and its nearest name."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    wrong = next(((name, model) for name in args if (model := _without(name, arch, args, outputs, channels))), None)
    if wrong is None:
        return text
    name, model = wrong
    if f"unexpected keyword argument {name!r}" in text:
        makers = (timm.model_entrypoint(arch), type(model))
        known = sorted({key for maker in makers for key in inspect.signature(maker).parameters} - set(OF_STUDY))
        return f"args: {text}{nearest(name, known)}"
    return f"args.{name}: {text}"


def _without(name: str, arch: str, args: Mapping[str, Any], outputs: int, channels: int) -> nn.Module | None:
    """The architecture without one of its arguments; None where it cannot be built then either."""
    rest = {"in_chans": channels} | {key: value for key, value in args.items() if key != name}
    try:
        model: nn.Module = timm.create_model(arch, num_classes=outputs, **rest)
    except Exception:  # an architecture may raise anything
        return None
    return model


def outline(build: Callable[[int], nn.Module]) -> dict[str, Slot]:
    """All tensors of an architecture, built without memory where that can be; torch's generator is left as it was.

    Args:
        build: makes the architecture with a number of outputs.

    Raises:
        KtError: as ``build`` does.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                first, second = (slots(build(outputs)) for outputs in OUTPUTS)
        except Exception:  # not every architecture can be built without memory, and it may raise anything
            first, second = (slots(build(outputs)) for outputs in OUTPUTS)
    for name, slot in first.items():
        other = second[name].shape if name in second else slot.shape
        sides = [(n or 0, m or 0) for n, m in zip(slot.shape, other, strict=True)]
        shape = tuple(n if n == m else None for n, m in sides)
        more = {n - OUTPUTS[0] for n, m in sides if n - m == OUTPUTS[0] - OUTPUTS[1]}
        first[name] = dataclasses.replace(slot, shape=shape, more=more.pop() if len(more) == 1 else 0)
    return first


def slots(model: nn.Module) -> dict[str, Slot]:
    """All tensors of a model; those of tied weights name the first of them."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    found, first = dict[str, Slot](), dict[int, str]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            same = first.setdefault(id(tensor), name)
            found[name] = Slot(tuple(tensor.shape), name in buffers, _kind(tensor), same if same != name else None)
    return found


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulate operations of one image's forward pass (matrix products, convolutions and attention).

    Args:
        model: on any device, torch's meta device included; its mode is left as it was.
        shape: channels, height and width of the image; of a clip [C, T, H, W].

    Raises:
        KtError: the model does not take such an image.
    """
    return run_once(model, shape)[0]


def run_once(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, Any]:
    """Multiply-accumulate operations of one image's forward pass, and the model's output; as ``macs``."""
    training, device = model.training, next(iter(model.parameters()), torch.empty(0)).device
    image = torch.linspace(-1, 1, math.prod(shape), device=device).reshape(1, *shape)
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            given = model(image)
    except Exception as error:  # an architecture may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise KtError(f"the model does not take an image of {list(shape)}: {type(error).__name__}: {text}") from error
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2, given


def check_training(model: nn.Module, shape: tuple[int, ...], answer: tuple[int | None, ...]) -> None:
    """Fail where a model gives answers of another shape while it is trained; it is left as it was.

    Raises:
        KtError: with its output, or that it does not take two images.
    """
    training, kept = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.linspace(-1, 1, 2 * math.prod(shape)).reshape(2, *shape)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = model(images)
    except Exception as error:  # an architecture may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise KtError(f"the model cannot be trained: {type(error).__name__}: {text}") from error
    finally:
        model.train(training)
        for name, buffer in model.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])
    if not isinstance(given, torch.Tensor) or not _has_shape(given, (2, *answer)):
        what = list(given.shape) if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
        raise KtError(f"in training the model gives {what} for two images; needed: one tensor, {_shape((2, *answer))}")


def check_outputs(given: Any, answer: tuple[int | None, ...], least: float = -math.inf) -> None:
    """Fail where a model's output for one image is no tensor of finite numbers of an answer's shape.

    Args:
        given: output of the model's forward pass.
        answer: shape of the answer to one image.
        least: smallest value that it may have.

    Raises:
        KtError: with its output.
    """
    wanted = f"needed: one tensor of floating-point numbers, {_shape((1, *answer))}"
    if not isinstance(given, torch.Tensor):
        inside = f" with {listed(map(str, given))}" if isinstance(given, Mapping) else ""
        count = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise KtError(f"the model gives a {type(given).__name__}{count}{inside}; {wanted}")
    if not _has_shape(given, (1, *answer)) or not given.is_floating_point():
        dtype = str(given.dtype).removeprefix("torch.")
        raise KtError(f"the model gives {list(given.shape)} of {dtype} for one image; {wanted}")
    if not given.is_meta and not given.isfinite().all():
        raise KtError("the model's answer to a plain image is not finite; its weights or its input are wrong")
    if not given.is_meta and (given < least).any():
        lowest = float(given.min())
        raise KtError(f"the model's answer to a plain image goes down to {lowest:.3g}; needed: nothing below {least:g}")


def _has_shape(given: torch.Tensor, wanted: tuple[int | None, ...]) -> bool:
    """Whether a tensor has a shape in which None stands for any number."""
    return given.ndim == len(wanted) and all(w in (None, n) for n, w in zip(given.shape, wanted, strict=True))


def _shape(wanted: tuple[int | None, ...]) -> str:
    """Such a shape as text."""
    return f"[{', '.join('any' if side is None else str(side) for side in wanted)}]"


def sizes(model: nn.Module) -> dict[str, int]:
    """``params`` and ``feature_width`` (of the features before the classifier; 0 where the model does not tell)."""
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "feature_width": int(getattr(model, "head_hidden_size", 0) or getattr(model, "num_features", 0)),
    }


def everything() -> dict[str, Any]:
    """Architectures with their module, and pretrained tags with timm's facts about them."""
    families = {name: timm.model_entrypoint(name).__module__.split(".")[-1] for name in timm.list_models()}
    tags = {}
    for name in timm.list_pretrained():
        known, plain = _known(name), _known(name.split(".")[0])
        tags[name] = {
            "arch": name.split(".")[0],
            "input_size": known.input_size,
            **{key: getattr(known, key) for key in PLAIN},
            "default": plain.tag == known.tag,
            "classifier": known.classifier if isinstance(known.classifier, str) else None,
        }
    renamed = {old: new.split(".")[0] for old, new in get_deprecated_models().items() if new}
    return {"models": families, "tags": tags, "renamed": renamed}


def _known(name: str) -> PretrainedCfg:
    found = get_pretrained_cfg(name)
    assert found is not None, "every registered model with weights has a configuration"
    return found


def sizes_of_tags(names: Iterable[str]) -> dict[str, dict[str, int | None] | None]:
    """``params``, ``macs`` and ``feature_width`` of tags, built without memory for weights; None where that fails."""
    found: dict[str, dict[str, int | None] | None] = {}
    done: dict[tuple[Any, ...], dict[str, int | None] | None] = {}
    for name in names:
        known = _known(name)
        shape = (known.architecture, known.num_classes, known.input_size)
        if shape not in done:
            try:
                done[shape] = _size(name, known.input_size)
            except Exception:  # an architecture may raise anything while it is built
                done[shape] = None
        found[name] = done[shape]
    return found


def _size(name: str, shape: tuple[int, ...]) -> dict[str, int | None]:
    with torch.device("meta"):
        model = timm.create_model(name)
    try:
        return {**sizes(model), "macs": macs(model, shape)}
    except KtError:  # some operations are not there for tensors without values
        return {**sizes(model), "macs": None}


def outlines(wanted: Iterable[tuple[str, dict[str, Any], int]]) -> list[dict[str, Any] | str]:
    """Tensors of architectures with arguments and colour channels, or the reason why there is no such architecture."""
    found: list[dict[str, Any] | str] = []
    for arch, args, channels in wanted:
        try:
            tensors = outline(partial(build, arch, args, channels=channels))
            found.append({name: dataclasses.asdict(slot) for name, slot in tensors.items()})
        except KtError as error:
            found.append(str(error).removeprefix("zoo: "))
    return found


Wanted = tuple[str, dict[str, Any], int, tuple[int, ...], tuple[int | None, ...]]
"""Architecture, arguments, outputs, and the shapes of an image and of the answer to it."""


def probes(wanted: Iterable[Wanted]) -> list[dict[str, Any] | str]:
    """Sizes, operations and shape of the answer of networks that answer for each pixel, or what is wrong with them.

    Args:
        wanted: architecture, arguments, outputs, and shapes of an image and of the answer to it, of each network.
    """
    found: list[dict[str, Any] | str] = []
    for each in wanted:
        try:
            try:
                with torch.device("meta"):
                    found.append(_probe(*each))
            except KtError:  # some operations are not there for tensors without values
                found.append(_probe(*each))
        except KtError as error:
            found.append(str(error).removeprefix("zoo: "))
    return found


def _probe(
    arch: str, args: dict[str, Any], outputs: int, shape: tuple[int, ...], answer: tuple[int | None, ...]
) -> dict[str, Any]:
    model = build(arch, args, outputs, shape[0])
    operations, given = run_once(model, shape)
    check_outputs(given, answer)
    return {**sizes(model), "macs": operations, "answer": given.shape[1:]}


def table(found: Mapping[str, Mapping[str, int | None] | None]) -> str:
    """Sizes as CSV, below a line with timm's version; models of unknown size are left out."""
    lines = [f"# timm {timm.__version__}", f"name,{','.join(SIZES)}"]
    for name, known in found.items():
        if known:
            lines.append(",".join([name, *("" if known[key] is None else str(known[key]) for key in SIZES)]))
    return "\n".join([*lines, ""])


def main(argv: Sequence[str]) -> int:
    """Write one listing; 1 where a module fails to import, with one line on which and why."""
    what, out, *modules = argv
    warnings.filterwarnings("ignore")
    try:
        import_modules(modules)
    except KtError as error:
        print(error, file=sys.stderr)
        return 1
    if what == "table":
        Path(out).write_text(table(sizes_of_tags(sorted(everything()["tags"]))), encoding="utf-8")
        return 0
    ask: dict[str, Callable[[Any], Any]] = {
        "models": lambda _: everything(),
        "sizes": sizes_of_tags,
        "outlines": outlines,
        "probes": probes,
    }
    Path(out).write_text(json.dumps(ask[what](json.load(sys.stdin))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
