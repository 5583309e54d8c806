"""Students for others: folders that timm loads, with a model card each, and an index of all of them.

A folder has ``config.json``, ``model.safetensors`` and, written last, ``README.md``. What chooses among students looks
at the validation split alone: the test images measure the student that was chosen.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kt
from kt import store
from kt.data.seen import ClipSpec, in_pixels
from kt.errors import KtError, quoted, unknown
from kt.tables.columns import with_metric
from kt.tasks.task import Words
from kt.transfer.ledger import Record
from kt.transfer.unit import Unit

if TYPE_CHECKING:
    from torch import nn

    from kt.transfer.session import Left

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD, INDEX = "config.json", "model.safetensors", "README.md", "index.csv"

LONGEST = 120
"""Characters of a student's name; a longer one is cut and ends with a hash."""

MOST_CLASSES = 50
"""Names of classes that a card lists; ``config.json`` has all."""

MODEL = ("first_conv", "classifier", "fixed_input_size")
"""Facts of an architecture that timm's loader needs, where the architecture has them."""

INDEXED = (
    "name",
    "student",
    "teachers",
    "method",
    "seed",
    "control",
    "validation_before",
    "validation_after",
    "acc_before",
    "acc_after",
    "delta",
    "delta_se",
    "n",
    "key",
)
"""Columns of the index; ``validation_…`` is the metric on the validation split, the rest is measured on test."""


@dataclass(frozen=True)
class About:
    """Facts of a study that a card tells beside those of the training.

    Attributes:
        task: words of the task.
        data: name of the data set.
        classes: names of the outputs, in order; none where outputs are no classes.
        outputs: number of the student's outputs.
        validation: the metric on validation before and after; None where there is no before.
        controls: rows of ``transfers`` of the controls with the same student and seed.
        licences: of the weights that it came from, by model; None where unknown. Models that the study trained from
            fresh weights are left out.
    """

    task: Words
    data: str
    classes: Sequence[str]
    outputs: int
    validation: tuple[float | None, float]
    controls: Sequence[Mapping[str, Any]]
    licences: Mapping[str, str | None]


def name_of(unit: Unit) -> str:
    """Readable name of a unit's student."""
    return readable(unit.student, unit.teachers, unit.method.name, unit.seed)


def readable(student: str, teachers: Sequence[str], method: str, seed: int) -> str:
    """Name of a student after its training: ``vit.from-resnet.kl_dp.seed0``."""
    source = f".from-{'+'.join(teachers)}" if teachers else ""
    name = f"{student}{source}.{method}.seed{seed}"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}.{store.digest(name)[:8]}"


def on_validation(outcome: Record) -> float | None:
    """The student's metric on validation after the last epoch; None where several models, or their mean, were left."""
    single = outcome.get("validation") and outcome.get("best_epoch") and "models" not in outcome
    return float(outcome["validation"][-1]) if single else None


def wanted(mode: str, value: float | None, before: float | None) -> bool:
    """Whether ``transfer.export`` asks for a student, by its metric on validation and that before transfer.

    Those without a value do not count as improved, nor do those that had none before.
    """
    return mode == "all" or (mode == "improved" and value is not None and before is not None and value > before)


def key_in(folder: Path) -> str | None:
    """Key of the unit whose student lies whole in a folder; None where there is none."""
    if not (folder / CARD).exists():
        return None
    try:
        return str(store.read_json(folder / CONFIG)["kt"]["key"])
    except (KtError, KeyError, TypeError):
        return None


def write(folder: Path, left: Left, row: Mapping[str, Any], unit: Record, about: About) -> None:
    """Write a student's folder: its weights, what timm needs to build it, and the card, which makes it whole.

    Args:
        folder: is made; what lies there of another training is replaced.
        left: the student.
        row: the unit's row of the table ``transfers``.
        unit: the unit's description, as in the ledger.
        about: the study.
    """
    from kt.zoo import weights

    (folder / CARD).unlink(missing_ok=True)
    weights.save(left.model, folder / WEIGHTS)
    found = config(folder.name, left, row, about)
    store.write_json(folder / CONFIG, found)
    call = f"timm.create_model('local-dir:{folder.name}', pretrained=True)"
    if not _loads(folder, left.model):  # an architecture that does not read weights by itself
        arguments = {**found["model_args"], "checkpoint_path": f"{folder.name}/{WEIGHTS}"}
        said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        call = f"timm.create_model({found['architecture']!r}, {said})"
    store.write_text(folder / CARD, card(row, unit, found, about, call, _module(found["architecture"])))


def config(name: str, left: Left, row: Mapping[str, Any], about: About) -> dict[str, Any]:
    """What ``config.json`` holds: for timm the architecture and its input, and under ``kt`` where it comes from."""
    (arch, args), spec, outputs, channels = left.architecture, left.spec, about.outputs, left.channels
    own = getattr(left.model, "pretrained_cfg", None) or {}
    per_channel = {
        key: list(values) * (channels if len(values) == 1 else 1)
        for key, values in (("mean", spec.mean), ("std", spec.std))
    }
    before, after = about.validation
    whole = {"encoder_weights": False} if "encoder_weights" in args else {}  # the file has the encoder's weights too
    facts = {key: row.get(key) for key in INDEXED}
    return {
        "architecture": arch.partition(".")[0],
        "num_classes": outputs,
        "pretrained_cfg": {
            **{key: own[key] for key in MODEL if own.get(key) is not None},
            "input_size": [channels, *spec.sides],
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            **per_channel,
            "num_classes": outputs,
        },
        "model_args": {"num_classes": outputs, "in_chans": channels, **args, **whole},
        **({"label_names": list(about.classes)} if about.classes else {}),
        "kt": {
            **facts,
            "name": name,
            "teachers": [] if row["control"] else list(row["teachers"]),
            "validation_before": before,
            "validation_after": after,
            "metric": about.task.metric.key,
            "data": about.data,
            **({"clip": spec.clip.model_dump()} if spec.clip else {}),
            "licences": dict(about.licences),
            "code_version": kt.__version__,
        },
    }


def _loads(folder: Path, model: nn.Module) -> bool:
    """Whether timm makes the very same model of a folder."""
    import timm
    import torch

    try:
        made = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except Exception as error:  # an architecture may raise anything
        log.info("export: %s: not by `local-dir:` (%s)", folder.name, (str(error).splitlines() or ["?"])[0])
        return False
    own = model.state_dict()
    return made.keys() == own.keys() and all(torch.equal(made[name], own[name].cpu()) for name in own)


def _module(arch: str) -> str:
    """The module to import before timm knows an architecture; empty for timm's own."""
    import timm

    module = str(timm.model_entrypoint(arch).__module__)
    if module == "kt.zoo.segmentation":  # which ``kt.zoo.models`` registers
        return "kt.zoo.models"
    return "" if module.startswith("timm.") else module


def card(
    row: Mapping[str, Any], unit: Record, config: Mapping[str, Any], about: About, call: str, module: str = ""
) -> str:
    """A model card as Markdown.

    Args:
        row: the unit's row of the table ``transfers``; it finished.
        unit: the unit's description, as in the ledger.
        config: what ``config.json`` holds.
        about: the study.
        call: loads the model.
        module: is to be imported before it; none where empty.
    """
    teachers = " and ".join(row["teachers"]) if not row["control"] else "nobody (control)"
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(row, unit, about))
    cfg, classes = config["pretrained_cfg"], about.classes
    names = ", ".join(classes[:MOST_CLASSES]) + (", …" if len(classes) > MOST_CLASSES else "")
    of_classes = f"\nClasses, in the order of the outputs (`label_names` in `{CONFIG}`): {names}.\n" if classes else ""
    clip, gives = config["kt"].get("clip"), f"with {config['num_classes']} outputs"
    takes = f"{in_pixels(cfg['input_size'][1:])} pixels, {cfg['input_size'][0]} channels"
    values = (
        f"values in 0 to 1, then mean {cfg['mean']} and standard\n"
        f"deviation {cfg['std']} (`crop_pct` {cfg['crop_pct']}, `crop_mode` {cfg['crop_mode']}, {cfg['interpolation']})"
    )
    if about.task.maps:
        gives = "that gives a map"
    if about.task.plays:
        gives, takes, values = _of_policy(unit["game"])
    if clip:
        takes = _clips(ClipSpec(**clip), takes, cfg["input_size"], about.task)
    end = "update" if about.task.plays else "epoch"
    return f"""---
library_name: timm
tags: [timm, knowledge-distillation]
{_licence(about.licences)}---
# {row["student"]}, after `{row["method"]}` from {teachers}

`{config["architecture"]}` {gives}, trained on {about.data}. These are the weights after
the last {end}.

| | |
|---|---|
{facts}

```python
import timm{f"{chr(10)}import {module}" if module else ""}
model = {call}.eval()  # from the folder above this one
```

Input: {takes}, {values}.
{of_classes}
How it was trained, all that determines its weights:

```json
{json.dumps(unit, indent=2)}
```
"""


def _of_policy(game: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a policy gives, what it takes, and its values there."""
    named = f" ({', '.join(game['meanings'])})" if game["meanings"] else ""
    frames = "" if game["frame_stack"] == 1 else f", the latest {game['frame_stack']} frames, the newest last"
    skip = "" if game["frame_skip"] == 1 else f", each action for {game['frame_skip']} frames"
    gives = f"that gives a logit for each of {game['actions']} actions{named}, then the value of the state"
    shape = ", ".join(map(str, ["batch", *game["shape"]]))
    values = "bytes divided by 255" if game["scale"] != 1 else "values as the game gives them"
    return gives, f"observations [{shape}] of {game['id']}{frames}{skip}", values


def _clips(clip: ClipSpec, of_frame: str, size: Sequence[int], task: Words) -> str:
    """The clips that a model takes, of frames of some kind, [C, H, W]."""
    first, last = clip.offsets[0], clip.offsets[-1]
    every = "every frame" if clip.stride == 1 else f"one of {clip.stride} frames"
    shape = ", ".join(map(str, [size[0], clip.frames, *size[1:]]))
    counted = f"{every} from {first} to {last}, counted from the {task.example} in question"
    beyond = "beyond an end of the video its outermost one"
    return f"clips [batch, {shape}] of {clip.frames} frames, {counted} ({beyond}), each of {of_frame}"


def _facts(row: Mapping[str, Any], unit: Record, about: About) -> list[tuple[str, Any]]:
    metric, n = about.task.metric, f"{row['n']} test {about.task.example}{'s' * (row['n'] != 1)}"
    over = f" (standard error over {about.task.cluster}s)" if about.task.cluster else ""
    unit_of = f" {metric.unit}".rstrip()

    def shown(value: float) -> str:
        return f"{metric.shown(value, 4)}{unit_of}"

    def change(of: Mapping[str, Any]) -> str:
        sign = "+" if of["delta"] >= 0 else ""
        error = metric.shown(of["delta_se"], 4) if math.isfinite(of["delta_se"]) else "unknown"
        return f"{sign}{metric.shown(of['delta'], 4)} ± {error} {metric.difference}"

    rows: list[tuple[str, Any]] = [(f"{metric.name} after", f"{shown(row['acc_after'])} of {n}")]
    if row.get("delta") is not None:
        rows = [
            (f"{metric.name} before", shown(row["acc_before"])),
            (f"{metric.name} after", shown(row["acc_after"])),
            ("transfer delta", f"{change(row)}, on {n}{over}"),
            ("knowledge gain / loss", f"{shown(row['knowledge_gain'])} / {shown(row['knowledge_loss'])}"),
        ]
    rows += [(f"control `{of['method']}` without a teacher, same seed", change(of)) for of in about.controls]
    before, after = about.validation
    rows.append(("on validation", f"{shown(after)}{'' if before is None else f', before {shown(before)}'}"))
    began = unit.get("architecture", {})  # of the student of an experiment
    if began.get("pretrained"):
        rows.append(("first weights", "those that timm publishes under this name"))
    elif began.get("checkpoint"):
        rows.append(("first weights", f"a checkpoint with SHA-256 `{began['checkpoint']}`"))
    rows += [(f"licence of {name}", licence or "unknown") for name, licence in about.licences.items()]
    return [*rows, ("trainings spent", row["budget"]), ("unit in the ledger", f"`{row['key']}`")]


def _licence(licences: Mapping[str, str | None]) -> str:
    """The line on the licence that all parents share: ``other`` where they have several, none without parents."""
    found = set(licences.values())
    if not found:
        return ""
    shared = "unknown" if None in found else found.pop() if len(found) == 1 else "other"
    return f"license: {shared}\n"


def write_index(root: Path) -> int:
    """Write the index of all whole students below a folder, as CSV; returns their number."""
    import pandas as pd

    found = [store.read_json(path.parent / CONFIG)["kt"] for path in sorted(root.glob(f"*/{CARD}"))]
    rows = pd.DataFrame(found).reindex(columns=list(INDEXED))
    rows["teachers"] = [" ".join(teachers) for teachers in rows["teachers"]]
    metric = str(found[0]["metric"]) if found else "acc"
    with store.atomic(root / INDEX) as temporary:
        rows.rename(columns=lambda name: with_metric(name, metric)).to_csv(temporary, index=False)
    return len(rows)


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
NO_DERIVATIVES = {"nd", "noderivatives", "noderivs"}


def refusal(licences: Mapping[str, str | None]) -> str | None:
    """The reason why a student of these parents may not be passed on; None where it may."""
    for name, licence in licences.items():
        if licence is None:
            return f"the licence of {name} is unknown; give it as `licence` in zoo.models.{name}, and export again"
        if NO_DERIVATIVES & set(re.split(r"[^a-z]+", licence.lower())):
            return f"{name} is under {licence}, which allows no derivatives"
    return None


def publish(root: Path, student: str, repository: str, push: bool) -> list[str]:
    """Push an exported student to the Hugging Face hub, or only say what would be pushed.

    Args:
        root: folder of the exported students.
        student: name of one of them.
        repository: on the hub, as ``owner/name``; made where it is not there.
        push: whether to push.

    Returns:
        What is pushed, in words.

    Raises:
        KtError: there is no such student or repository, a parent's licence does not allow it, or the hub refuses.
    """
    there = sorted(path.parent.name for path in root.glob(f"*/{CARD}"))
    if student not in there:
        known = unknown("exported student", student, there) if there else f"no exported student {quoted(student)}"
        raise KtError(f"publish: {known}; `kt export` makes them")
    if not REPOSITORY.fullmatch(repository):
        raise KtError(f"publish: --repo: {quoted(repository)}; allowed is owner/name")
    folder = root / student
    if reason := refusal(store.read_json(folder / CONFIG)["kt"]["licences"]):
        raise KtError(f"publish: {student}: {reason}")
    sizes = [(name, (folder / name).stat().st_size) for name in (CARD, CONFIG, WEIGHTS)]
    lines = [f"{student} -> {repository}", *(f"  {name}: {size:,} bytes" for name, size in sizes)]
    if not push:
        return [*lines, "dry run: nothing was pushed; `--push` does it"]
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        names = [name for name, _ in sizes]
        hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names, commit_message=student)
    except Exception as error:  # the hub's client raises errors of many libraries
        raise KtError(f"publish: {repository}: {(str(error).splitlines() or ['?'])[0]}") from error
    return [*lines, f"pushed; timm.create_model('hf-hub:{repository}', pretrained=True) loads it"]
