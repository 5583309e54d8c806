"""Contents of a checkpoint file by name: read without torch, without its tensors, and without running any of it.

Settings of its own training in the file are compared with the member's (``differing``).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kt import store
from kt.data.seen import InputSpec
from kt.errors import KtError, listed
from kt.zoo import pickled
from kt.zoo.pickled import Entry, Inert

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".pth.tar", ".ckpt", ".pkl")

OTHERS = (
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (0, b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"{", "JSON text; give the file of weights that it describes"),
)
"""Kinds of files that are given in place of weights: offset of their signature, the signature, and the error."""

NUMBERS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
}
"""torch's names of the dtypes of a .safetensors file."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names under which the hub keeps weights; the ``config.json`` beside them is theirs."""

SETTINGS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
"""Names under which training scripts keep their arguments."""

ARCHITECTURE = ("arch", "architecture", "model_name", "model", "backbone")
"""Names under which they keep the architecture's."""

DEPTH = 5
"""Depth of nested dictionaries that are searched."""


@dataclass(frozen=True)
class Header:
    """Contents of a checkpoint file.

    Attributes:
        path: the file.
        content: nested dictionaries with an ``Entry`` for every tensor.
        places: where the numbers of a file of ``torch.save`` lie; None for .safetensors.
        config: of the hub's ``config.json`` beside the file.
    """

    path: Path
    content: Any
    places: dict[str, str | tuple[int, int]] | None
    config: dict[str, Any]

    def sets(self) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        """All dictionaries with tensors by name, outer ones first, and the keys that lead to them."""
        return list(_sets(self.content, (), set()))

    def lists(self) -> list[tuple[str, ...]]:
        """Keys that lead to lists of tensors, which have no names."""
        return list(_lists(self.content, (), set()))

    def settings(self) -> list[Mapping[Any, Any]]:
        """Settings of the training in the file: its own plain values, then those of its dictionaries of settings."""
        inside = self.content if isinstance(self.content, Mapping) else {}
        found = [self.config, self.config.get("pretrained_cfg"), inside, *map(inside.get, SETTINGS)]
        states = [item.state if isinstance(item, Inert) and not item else item for item in found]
        return [item for item in states if isinstance(item, Mapping)]

    def architectures(self) -> list[str]:
        """Names of the architecture, as training scripts and the hub keep them."""
        names = [settings.get(key) for settings in self.settings() for key in ARCHITECTURE]
        return [name for name in names if isinstance(name, str)]

    def encoders(self) -> list[str]:
        """Names of timm models that are the encoder of a network of segmentation_models_pytorch."""
        names = [settings.get("encoder_name") for settings in self.settings()]
        return [name.removeprefix("tu-") for name in names if isinstance(name, str)]


def _sets(value: Any, at: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(value, dict) or id(value) in seen:
        return
    seen.add(id(value))
    named = {name: item for name, item in value.items() if isinstance(name, str)}
    if any(isinstance(item, Entry) for item in named.values()):
        yield at, named
    if len(at) < DEPTH:
        for name, item in named.items():
            yield from _sets(item, (*at, name), seen)


def _lists(value: Any, at: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, list | tuple) and any(isinstance(item, Entry) for item in value):
        yield at
    if not isinstance(value, dict) or id(value) in seen or len(at) > DEPTH:
        return
    seen.add(id(value))
    for name, item in value.items():
        if isinstance(name, str):
            yield from _lists(item, (*at, name), seen)


def read(at: str, path: Path) -> Header:
    """Look into a checkpoint file.

    Args:
        at: the key that names the file, for errors.
        path: of the file.

    Raises:
        KtError: there is none, it is of another kind, damaged, or holds no tensors by name; with advice.
    """
    _check_kind(at, path)
    try:
        if _is_safetensors(path):
            content, metadata = _safetensors(path)
            header = Header(path, content, None, {**_config(path), **metadata})
        else:
            found = pickled.read(path)
            header = Header(path, found.content, found.places, _config(path))
    except Exception as error:  # a damaged file can fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise KtError(f"{at}: {str(path)!r} is not weights ({reason})") from error
    if not header.sets():
        raise KtError(f"{at}: {str(path)!r} is not weights: it holds {_content(header.content)}, not tensors by name")
    return header


def _check_kind(at: str, path: Path) -> None:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.name.endswith(SUFFIXES))
        files = f": {listed(inside)}" if inside else ""
        raise KtError(f"{at}: {str(path)!r} is a folder; give the file of weights in it{files}")
    if path.name.endswith(".index.json"):
        parts = f"lists the parts of weights in several files; join these to one {SUFFIXES[0]} file"
        raise KtError(f"{at}: {str(path)!r} {parts}")
    if not path.name.endswith(SUFFIXES):
        raise KtError(f"{at}: {str(path)!r} is no file of weights; allowed: {listed(SUFFIXES)}")
    if not path.is_file():
        raise KtError(f"{at}: {str(path)!r}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise KtError(f"{at}: {str(path)!r} cannot be read ({error.strerror})") from error
    if not start:
        raise KtError(f"{at}: {str(path)!r} is not weights (the file is empty)")
    kinds = [error for offset, signature, error in OTHERS if start[offset:].startswith(signature)]
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        kinds.append("a web page; download the file itself")
    if start[0] == 8 and start[2:3] == b"\x12":
        kinds.append("an ONNX model; save the state_dict() of the model in torch")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        kinds.append("an archive that is cut off; copy it again")
    if store.is_pointer(path):
        store.refuse(at, path)
    if kinds:
        raise KtError(f"{at}: {str(path)!r} is not weights ({kinds[0]})")


def _is_safetensors(path: Path) -> bool:
    """By the content, since files of either kind bear names of the other; a length comes first, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80")))


def _safetensors(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        entries = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            entries[name] = Entry(NUMBERS.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()), name)
        return entries, file.metadata() or {}


def _config(path: Path) -> dict[str, Any]:
    if path.name not in HUB_FILES:
        return {}
    try:
        found = store.read_json(path.with_name("config.json"))
    except (KtError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _content(value: Any) -> str:
    """Description of a file without tensors by name, and advice."""
    if isinstance(value, Entry):
        return "a single tensor"
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    for name, item in [("", value), *value.items()]:
        if _is_module(item):
            place = f" under {_clip(name)!r}" if name else ""
            return f"a whole model{place} ({type(item).__name__}), whose code would run (save its state_dict())"
    if not value:
        return "nothing" if type(value) is dict or not isinstance(value, Inert) else f"a {type(value).__name__}"
    if any(type(item).__name__ == "_reconstruct" for item in value.values()):
        return "numpy arrays"
    return f"the keys {listed(sorted(map(_clip, value)))}"


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and isinstance(value.state, Mapping) and "_modules" in value.state


def _clip(name: Any) -> str:
    return clip(str(name))


def clip(name: str) -> str:
    """A name of a file for one line: printable, and not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


ARGUMENTS = {"bn_eps": "bn_eps", "gp": "global_pool", "act_layer": "act_layer"}
"""Options of timm's training script that change a model's outputs, and the arguments that they stand for."""


def differing(file: Header, args: Mapping[str, Any], spec: InputSpec) -> list[str]:
    """Settings of the training that are not the member's, each with both values; neither names nor shapes show them.

    Args:
        file: of the checkpoint.
        args: of the architecture, as configured.
        spec: the member's input.
    """
    settings = file.settings()

    def stored(key: str) -> Any:
        return next((value for each in settings if (value := each.get(key)) not in (None, "")), None)

    wanted: dict[str, Any] = {key: getattr(spec, key) for key in ("mean", "std", "crop_pct", "interpolation")}
    found = {key: stored(key) for key in wanted}
    shape = stored("input_size")
    wanted["size"] = spec.size
    found["size"] = _size(shape) if isinstance(shape, list | tuple) and shape else stored("img_size")
    kwargs = stored("model_kwargs")
    given = {argument: stored(option) for option, argument in ARGUMENTS.items()}
    given |= {str(key): value for key, value in kwargs.items()} if isinstance(kwargs, Mapping) else {}
    wanted |= {f"args.{key}": args.get(key) for key in given}
    found |= {f"args.{key}": value for key, value in given.items()}
    return [
        f"{clip(key)} {clip(str(value))}, here {wanted[key]}"
        for key, value in found.items()
        if _plain(value) and not _alike(value, wanted[key])
    ]


def _size(shape: Sequence[Any]) -> Any:
    """Side of a square input, else its height and width, from channels, height and width."""
    return shape[-1] if len(set(map(str, shape[-2:]))) == 1 else tuple(shape[-2:])


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        same_length = isinstance(other, list | tuple) and len(one) == len(other)
        return same_length and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-3 * abs(other)
    return bool(one == other)
