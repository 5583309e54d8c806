"""Architectures and pretrained tags that exist, and their facts, without importing torch or timm.

timm is asked once, in a process of its own (``kt.zoo.models``), and its answer is kept in the user's cache folder
(``$XDG_CACHE_HOME/kt``, else ``~/.cache/kt``) under a hash of timm's version, its sources and those of the user's
modules: later runs read it in milliseconds. Reading timm's sources instead would be as quick the first time, but its
configurations are made by code, not by literals.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kt import store
from kt.errors import KtError, short
from kt.zoo.fit import Slot

TABLE = Path(__file__).with_name("sizes.csv")
"""Sizes of all tags of one timm version, where ``python -m kt.zoo.models table`` has made them."""


@dataclass(frozen=True)
class Pretrained:
    """Configuration of one pretrained tag in timm.

    Attributes:
        arch: the architecture's name, without the tag.
        input_size: channels, height and width.
        mean: of every channel, images in [0, 1].
        std: of every channel, images in [0, 1].
        crop_pct: the share of the resized image's side that the crop keeps.
        crop_mode: `center`, `squash` or `border`.
        interpolation: `bicubic`, `bilinear`, …
        num_classes: outputs of the head; 0 where there is none.
        license: of the weights, or None.
        hf_hub_id: repository on the Hugging Face hub, or None.
        default: whether the architecture's name alone means this tag.
        classifier: name of the layer that gives the logits, where there is one.
    """

    arch: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str
    num_classes: int
    license: str | None
    hf_hub_id: str | None
    default: bool
    classifier: str | None = None


@dataclass(frozen=True)
class Size:
    """Parameters, multiply-accumulate operations of one image, and the width of the features before the classifier."""

    params: int
    macs: int | None
    feature_width: int


@dataclass(frozen=True)
class Probe(Size):
    """The same of a network that answers for each pixel, and the shape of its answer: outputs, height and width."""

    answer: tuple[int, ...]


@dataclass(frozen=True)
class Registry:
    """Every architecture with the module that defines it, every pretrained tag, and architectures' former names."""

    models: dict[str, str]
    tags: dict[str, Pretrained]
    renamed: dict[str, str] = field(default_factory=dict)

    def arch(self, name: str) -> str | None:
        """The architecture that a name means, with a tag, a former name or the hub's; None where it is not known."""
        plain = name.rpartition("/")[2].rpartition(":")[2].partition(".")[0]
        plain = self.renamed.get(plain, plain)
        return plain if plain in self.models else None

    def tag(self, name: str) -> str | None:
        """The pretrained tag that a name means: itself, the default of an architecture, or None."""
        if name in self.tags:
            return name
        return next((tag for tag, known in self.tags.items() if known.arch == name and known.default), None)


def source(module: str) -> Path:
    """The source file of a module, found without running it (its parent packages are imported).

    Raises:
        KtError: there is no such Python module.
    """
    at = f"zoo.modules: {short(module)}"
    if module.endswith(".py") or "/" in module:
        raise KtError(f"{at}: a module is given by its name, here {short(Path(module).stem)!r}")
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a parent package runs, and may raise anything
        raise KtError(f"{at}: cannot be found ({short(error)})") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise KtError(f"{at}: no such Python module on this machine, and none in the configuration's folder")
    return Path(spec.origin)


def load(modules: Sequence[str] = ()) -> Registry:
    """Architectures and tags of ``timm.create_model``, with the models that the user's modules register.

    Raises:
        KtError: a module cannot be found, or fails to import.
    """
    return _read(tuple(modules), _key(modules))


def sizes(names: Iterable[str], modules: Sequence[str] = ()) -> dict[str, Size | None]:
    """Sizes of pretrained tags, without their weights; None where timm cannot build one without them.

    Those that neither ``TABLE`` nor the cache holds are built on torch's meta device: about a quarter of a
    second each.
    """
    names = list(names)
    found: dict[str, Any] = dict(_table())
    if all(name in found for name in names):
        return {name: found[name] for name in names}
    path = cache_folder() / f"sizes-{_key(modules)}.json"
    kept: dict[str, Any] = store.read_json(path) if path.is_file() else {}
    if missing := [name for name in names if name not in found and name not in kept]:
        kept |= _ask("sizes", modules, json.dumps(missing))
        _keep(path, kept)
    found |= {name: Size(**known) if known else None for name, known in kept.items()}
    return {name: found[name] for name in names}


def outlines(
    wanted: Sequence[tuple[str, dict[str, Any], int]], modules: Sequence[str] = ()
) -> list[dict[str, Slot] | str]:
    """The tensors of architectures, each with its arguments and colour channels, or why timm refuses these.

    Those that the cache does not hold are built on torch's meta device: about half a second each.
    """
    found = _cached("outlines", wanted, modules)
    return [outline if isinstance(outline, str) else _slots(outline) for outline in found]


def probes(
    wanted: Sequence[tuple[str, dict[str, Any], int, tuple[int, ...], tuple[int | None, ...]]],
    modules: Sequence[str] = (),
) -> list[Probe | str]:
    """Sizes and answers of networks whose answers are maps, or what is wrong with them.

    Each is given by architecture, arguments, outputs, and the shapes of an image and of the answer to it. They are kept
    and made as ``outlines``.
    """
    found = _cached("probes", wanted, modules)
    return [
        probe if isinstance(probe, str) else Probe(**{**probe, "answer": tuple(probe["answer"])}) for probe in found
    ]


def _cached(what: str, wanted: Sequence[tuple[Any, ...]], modules: Sequence[str]) -> list[Any]:
    """Answers about networks from the cache, or else from timm; refusals, which are texts, are not kept."""
    path, keys = cache_folder() / f"{what}-{_key(modules)}.json", [store.digest(list(each)) for each in wanted]
    kept: dict[str, Any] = store.read_json(path) if path.is_file() else {}
    if missing := {key: each for key, each in zip(keys, wanted, strict=True) if key not in kept}:
        found = dict(zip(missing, _ask(what, modules, json.dumps(list(missing.values()))), strict=True))
        _keep(path, kept | {key: answer for key, answer in found.items() if not isinstance(answer, str)})
        kept |= found
    return [kept[key] for key in keys]


def _slots(outline: dict[str, Any]) -> dict[str, Slot]:
    return {name: Slot(**{**slot, "shape": tuple(slot["shape"])}) for name, slot in outline.items()}


def cache_folder() -> Path:
    """Folder in which answers of timm are cached."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kt"


def _key(modules: Sequence[str]) -> str:
    """A hash of the libraries' versions and of the sources that determine their answers."""
    content = hashlib.sha256(f"{version('timm')} {version('segmentation-models-pytorch')}".encode())
    here = Path(__file__).parent
    own = [here / name for name in ("fit.py", "models.py", "segmentation.py")]
    for path in (*sorted((source("timm").parent / "models").glob("*.py")), *own):
        content.update(path.read_bytes())
    for module in modules:
        path = source(module)
        for part in sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]:
            content.update(f"{module}\n".encode() + part.read_bytes())
    return content.hexdigest()[:24]


@lru_cache(maxsize=8)
def _read(modules: tuple[str, ...], key: str) -> Registry:
    path = cache_folder() / f"models-{key}.json"
    raw = store.read_json(path) if path.is_file() else _ask("models", modules, "null")
    if not path.is_file():
        _keep(path, raw)
    tags = {name: _pretrained(known) for name, known in raw["tags"].items()}
    return Registry(raw["models"], tags, raw["renamed"])


def _pretrained(known: dict[str, Any]) -> Pretrained:
    tuples = {key: tuple(known[key]) for key in ("input_size", "mean", "std")}
    licence = None if known["license"] == "unknown" else known["license"]
    return Pretrained(**{**known, **tuples, "license": licence})


@lru_cache(maxsize=1)
def _table() -> dict[str, Size]:
    if not TABLE.is_file():
        return {}
    with TABLE.open(encoding="utf-8") as file:
        if file.readline().strip() != f"# timm {version('timm')}":
            return {}
        return {
            row["name"]: Size(int(row["params"]), int(row["macs"]) if row["macs"] else None, int(row["feature_width"]))
            for row in csv.DictReader(file)
        }


def _ask(what: str, modules: Sequence[str], names: str) -> Any:
    """Run the listing in a process of its own, which sees the same modules as this one."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "listing.json"
        command = [sys.executable, "-m", "kt.zoo.models", what, str(out), *modules]
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, input=names, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            ours = lines[-1] if lines[-1].startswith("zoo.modules: ") else f"timm cannot be asked: {lines[-1]}"
            raise KtError(ours)
        return store.read_json(out)


def _keep(path: Path, value: Any) -> None:
    """Write to the cache; where that is not allowed, the next run asks again."""
    try:
        with store.atomic(path) as temporary:
            temporary.write_text(json.dumps(value), encoding="utf-8")
    except (KtError, OSError):
        return
