"""Checkpoints of any make: loaded as they were saved, or refused with one line, and never a traceback."""

from __future__ import annotations

import argparse
import collections
import pathlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import Settings, Tensors, Tiny, equal, loaded, trained
from torch import nn

from kt.errors import KtError

PLAIN, OTHER = trained(), trained(1)
KEYS = ["state_dict", "model", "net", "ema", "model_ema", "module", "teacher", "weird key", ""]
PREFIXES = ["", "module.", "model.", "net.", "_orig_mod.", "module.model.", "a.b.c.", "encoder_q."]
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64, torch.float8_e4m3fn, torch.bool]
EXTRAS: list[Any] = [
    3, "text", None, np.float32(1), np.arange(3), pathlib.Path("x"), {1, 2}, collections.defaultdict(list, a=[1]),
    argparse.Namespace(lr=1, model="x"), Settings(a=1), nn.Linear(2, 2), torch.zeros(3), [torch.zeros(2)],
    {"state": {0: {"exp_avg": torch.zeros(2)}}}, torch.device("cpu"), torch.float16, slice(1), complex(1, 2), b"bytes",
    collections.OrderedDict(x=torch.ones(1)), 10**30, float("nan"), {"": {"": {}}},
]  # fmt: skip


@st.composite
def contents(draw: st.DrawFn) -> tuple[Any, bool]:
    """What a training script saves, and whether it is the weights ``PLAIN`` beyond doubt."""
    tensors, clear = dict(PLAIN), True
    match draw(st.sampled_from(["as it is", "as it is", "missing", "more", "dtype", "shape", "order"])):
        case "missing":
            name = draw(st.sampled_from(sorted(tensors)))
            clear = name == "norm.num_batches_tracked"
            del tensors[name]
        case "more":
            tensors[draw(st.sampled_from(["extra.weight", "stem", "head.weight.x", "x" * 300]))] = torch.ones(2)
            clear = False
        case "dtype":
            name = draw(st.sampled_from(["stem.weight", "head.bias", "norm.running_var"]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tensors[name] = tensors[name].to(draw(st.sampled_from(DTYPES)))
            clear = False
        case "shape":
            name = draw(st.sampled_from(sorted(tensors)))
            tensors[name] = torch.zeros(draw(st.lists(st.integers(0, 4), max_size=5)))
            clear = False
        case "order":
            tensors = dict(reversed(tensors.items()))
    prefix = draw(st.sampled_from(PREFIXES))
    content: Any = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=3)):
        content = {key: content}
        for extra in draw(st.lists(st.sampled_from(range(len(EXTRAS))), max_size=3)):
            content[f"extra {extra}"] = EXTRAS[extra]
    return content, clear


def attempt(path: Path) -> Tensors | None:
    """The weights, or None where the file is refused with one line."""
    try:
        return loaded(str(path))
    except KtError as error:
        line = str(error)
    assert line.startswith("zoo.models.a.checkpoint: ")
    assert "\n" not in line
    assert len(line) < 2000
    return None


def same_numbers(found: Tensors, content: Any) -> bool:
    """Whether every tensor that was loaded is in the file, at the model's precision."""
    inside: list[torch.Tensor] = []

    def walk(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else ():
            inside.append(item) if isinstance(item, torch.Tensor) else walk(item)

    walk(content)
    return all(
        any(t.shape == tensor.shape and torch.equal(t.to(tensor.dtype), tensor) for t in inside)
        for name, tensor in found.items()
        if name != "norm.num_batches_tracked"
    )


@given(contents(), st.booleans(), st.sampled_from([2, 4]))
def test_what_is_clear_is_loaded_and_all_else_is_refused_or_the_files_own(tmp_path, made, zipped, protocol):
    content, clear = made
    path = tmp_path / "w.pth"
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    except Exception:  # numbers that this format of torch cannot hold
        return
    found = attempt(path)
    if clear:
        assert found is not None
        assert equal(found, {**PLAIN, "norm.num_batches_tracked": found["norm.num_batches_tracked"]})
    assert found is None or same_numbers(found, content)


FORMATS = {"zip": True, "legacy": False, "safetensors": None}


def written(path: Path, kind: str) -> bytes:
    if kind == "safetensors":
        save_file(PLAIN, path)
    else:
        torch.save(
            {"model": PLAIN, "args": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=FORMATS[kind]
        )
    return path.read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_a_file_that_is_cut_off_is_refused(tmp_path, kind, share):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    whole = written(path, kind)
    path.write_bytes(whole[: int(share * len(whole))])
    assert attempt(path) is None


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_that_is_flipped_never_ends_in_a_traceback(tmp_path, kind, at, bit):
    path = tmp_path / "w.pth"
    content = bytearray(written(path, kind))
    content[int(at * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    found = attempt(path)
    if kind == "zip" and found is not None:  # its checksums say what was written
        assert equal(found, {**PLAIN, "norm.num_batches_tracked": found["norm.num_batches_tracked"]})


@given(content=st.binary(max_size=300), name=st.sampled_from(["w.pth", "w.safetensors", "w.ckpt"]))
@example(content=b"\x80\x02}q\x00.", name="w.pth")
@example(content=b"\x80\x02c__builtin__\nexec\nU\x05raiseq\x00\x85R.", name="w.pth")
def test_bytes_of_any_kind_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    assert attempt(tmp_path / name) is None


def test_a_dictionary_inside_of_itself_is_read(tmp_path):
    content: dict[str, Any] = {"model": PLAIN}
    content["again"] = content
    torch.save(content, tmp_path / "w.pth")
    assert equal(loaded(str(tmp_path / "w.pth")), PLAIN)
    assert Tiny().state_dict().keys() == PLAIN.keys()
