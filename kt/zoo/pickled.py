"""Files of ``torch.save``, read without torch and without running their content.

A pickle names functions to call and classes to make. Here only the functions that rebuild tensors are known, and they
make descriptions; whatever else a training script left beside the weights becomes an ``Inert`` object, which does
nothing. So keys, shapes and settings are known without loading a tensor, and no object of a foreign package can stop
the weights from being read.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from kt.errors import KtError

MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file of ``torch.save`` before torch 1.6."""

SIZES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
"""Bytes of one number, by the dtype's name in torch."""

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "uint8",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its name in torch's words, and where its numbers lie.

    Attributes:
        dtype: as torch names it, or in a few words what kind of tensor torch cannot simply read.
        shape: of the tensor.
        key: of the storage in the file; the tensor's name in a .safetensors file.
        offset: of the first number in the storage.
        stride: of the numbers in the storage; None where they lie in order.
    """

    dtype: str
    shape: tuple[int, ...]
    key: str
    offset: int = 0
    stride: tuple[int, ...] | None = None


class Inert(dict[Any, Any]):
    """Stands for an object of an unknown class; keeps its items and its state, and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def append(self, item: Any) -> None:
        """Takes an item of a list that is not made."""

    extend = add = append


PLAIN = ("OrderedDict", "defaultdict", "Counter")


class _Plain(dict[Any, Any]):
    """Stands for the dictionaries of ``collections``; a default factory is never called."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(item for item in args if isinstance(item, dict | list)))


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int
    offset: int = 0


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Entry:
    shape, stride, first = tuple(shape), tuple(stride), storage.offset + offset
    numbers = (first, *shape, *stride)
    if len(shape) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    last = first + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.count:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    marked = len(rest) > 2 and rest[2]  # conjugated or negated when it is read
    return Entry("lazily conjugated" if marked else storage.dtype, shape, storage.key, first, stride)


def _typed(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Entry:
    dtype = str(rest[2]) if len(rest) > 2 else storage.dtype
    counted = _Storage(dtype, storage.key, storage.count // SIZES.get(dtype, 1), storage.offset)
    return _tensor(counted, offset, shape, stride)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _strange(kind: str) -> Any:
    def make(*args: Any) -> Entry:
        return Entry(kind, (), "")

    return make


BUILDERS: dict[str, Any] = {
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_qtensor": lambda storage, offset, shape, stride, *rest: _tensor(
        storage, offset, shape, stride
    ),
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": lambda make, kind, args, state: make(*args),
    "torch._utils._rebuild_sparse_tensor": _strange("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _strange("sparse"),
    "torch._utils._rebuild_nested_tensor": _strange("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _strange("without numbers"),
    "torch._utils._rebuild_wrapper_subclass": _strange("of a subclass"),
    "torch._utils._rebuild_device_tensor_from_numpy": _strange("of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
}
"""Functions that a pickle may call: those of torch that rebuild tensors, replaced by ones that describe them."""


class _Unpickler(pickle.Unpickler):
    """Makes plain values, descriptions of tensors, and ``Inert`` objects in place of all others."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Stand-in for a global name of the file: nothing is imported. Each is new, since a file may alter it."""
        if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and (name in SIZES or name.startswith(("float8", "float4"))):
            return name
        if (build := BUILDERS.get(f"{module}.{name}")) is not None:
            return lambda *args: build(*args)
        return type(name, (_Plain if module == "collections" and name in PLAIN else Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        """The description of a storage; old files name the sources of classes in the same way."""
        kind, *rest = pid
        if kind != "storage":
            return rest[0]
        dtype, key, _, count, *view = rest
        if type(count) is not int or not isinstance(dtype, str):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        whole = _Storage(dtype, str(key), count)
        self.storages.setdefault(str(key), whole)
        return _Storage(dtype, str(key), count, view[0][1]) if view and view[0] else whole


@dataclass(frozen=True)
class Pickled:
    """Contents of a file of ``torch.save``.

    Attributes:
        content: dictionaries, lists and plain values, ``Entry`` for tensors, ``Inert`` for all else.
        places: the name of each storage in the archive, or its first byte and its length in a file before torch 1.6.
    """

    content: Any
    places: dict[str, str | tuple[int, int]]


def read(path: Path) -> Pickled:
    """Describe a file of ``torch.save``; its tensors are not read, and nothing in it is run.

    Raises:
        KtError: a file of another kind, with a remedy.
        Exception: of any kind, where the file is damaged.
    """
    return _read_archive(path) if zipfile.is_zipfile(path) else _read_legacy(path)


def _read_archive(path: Path) -> Pickled:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if any(name.endswith("constants.pkl") for name in sizes):
            raise KtError("a TorchScript archive, whose code would run; save the model's state_dict()")
        if any(name.endswith(".npy") for name in sizes):
            raise KtError("an archive of numpy arrays; save a state_dict() of tensors")
        root = next((name.removesuffix("data.pkl") for name in sizes if name.endswith("data.pkl")), None)
        if root is None:
            raise KtError("an archive without tensors; save the model's state_dict()")
        if sizes.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
            raise KtError("written on a big-endian machine; save it again on this one")
        with archive.open(f"{root}data.pkl") as file:
            unpickler = _Unpickler(file)
            content = unpickler.load()
    places = {key: f"{root}data/{key}" for key in unpickler.storages}
    for key, storage in unpickler.storages.items():
        if sizes.get(places[key], -1) != storage.count * SIZES[storage.dtype]:
            raise pickle.UnpicklingError("the numbers of a tensor are not there")
    return Pickled(content, dict(places))


def _read_legacy(path: Path) -> Pickled:
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise KtError("a pickle that torch.save did not write; save the model's state_dict() with torch.save")
        _, system = _Unpickler(file).load(), _Unpickler(file).load()
        if not system.get("little_endian", True):
            raise KtError("written on a big-endian machine; save it again on this one")
        unpickler = _Unpickler(file)
        content = unpickler.load()
        places: dict[str, str | tuple[int, int]] = {}
        for key in map(str, _Unpickler(file).load()):
            (count,) = struct.unpack("<q", file.read(8))
            storage = unpickler.storages[key]
            places[key] = (file.tell(), count * SIZES[storage.dtype])
            file.seek(count * SIZES[storage.dtype], 1)
            if count != storage.count or file.tell() > path.stat().st_size:
                raise pickle.UnpicklingError("the numbers of a tensor are not there")
        if unpickler.storages.keys() - places.keys():
            raise pickle.UnpicklingError("the numbers of a tensor are not there")
    return Pickled(content, places)


def storages(path: Path, places: dict[str, str | tuple[int, int]], keys: Iterable[str]) -> Iterator[bytearray]:
    """The bytes of storages, one after another; archives are checked against their checksums.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    wanted = [places[key] for key in keys]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (bytearray(archive.read(str(name))) for name in wanted)
    else:
        with path.open("rb") as file:
            for start, length in cast("list[tuple[int, int]]", wanted):
                file.seek(start)
                yield bytearray(file.read(length))
