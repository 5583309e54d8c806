"""Checkpoint files of training scripts: loaded where it is clear what is meant, else refused with one line."""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import Settings, Tensors, Tiny, equal, loaded, saved, trained, under
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kt.errors import KtError
from kt.zoo import header, weights

PLAIN = trained()
OTHER = trained(1)


def without(*leaves: str, tensors: Tensors = PLAIN) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in leaves}


def refused(path: str, line: str, **options: Any) -> str:
    with pytest.raises(KtError, match=line) as caught:
        loaded(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("zoo.models.a.checkpoint: ")
    return text


class Unpickled:
    """Whoever reads this from a file runs code."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise AssertionError('a pickle was run')",)


EXTRAS: dict[str, Any] = {
    "best": np.float64(93.5),
    "history": np.arange(3.0),
    "where": pathlib.Path("runs/1"),
    "meters": collections.defaultdict(list, {"loss": [1.0]}),
    "args": argparse.Namespace(lr=0.1),
    "config": Settings(lr=0.1, layers=[1, 2]),
    "callback": Unpickled(),
    "classes": {"a", "b"},
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(6)}}},
    "module_list": [nn.Linear(2, 2)],
}

FORMS: dict[str, Any] = {
    "plain.pth": PLAIN,
    "wrapped.pth.tar": {"state_dict": PLAIN, "epoch": 3},
    "nested.pth": {"checkpoint": {"model": PLAIN}},
    "parallel.pt": {"model": under("module.")},
    "compiled.th": {"model": under("_orig_mod.module.")},
    "sharded.bin": {"model": under("_fsdp_wrapped_module._orig_mod.")},
    "deepspeed.pt": {"module": under("module."), "dp_world_size": 8},
    "lightning.ckpt": {"state_dict": under("model."), "pytorch-lightning_version": "2.5"},
    "named.ckpt": {"state_dict": {**under("net."), "criterion.weight": torch.ones(3)}, "hyper_parameters": Settings()},
    "probing.ckpt": {"state_dict": {**under("backbone."), "prototypes.weight": torch.ones(3)}},
    "compiled.ckpt": {"state_dict": under("model._orig_mod.")},
    "loss.pth": {**PLAIN, "criterion.weight": torch.ones(3)},
    "averaged.pth": {"n_averaged": torch.tensor(5), **under("module.")},
    "profiled.pth": {**PLAIN, "total_ops": torch.zeros(1), "stem.total_params": torch.zeros(1)},
    "teacher.pth": {"model": PLAIN, "teacher": OTHER},
    "moments.pth": {"model": PLAIN, "optimizer": {"exp_avg": OTHER}},
    "same.pth": {"state_dict": {**under("model."), **under("attacker.model.")}},
    "parameters.pth": {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in PLAIN.items()},
    **{f"{name}.pth": {"model": OTHER, name: PLAIN} for name in (
        "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "averaged_model", "swa_model", "shadow_params",
        "EMA", "modelEma", "EMAModel",
    )},
    "ema.pth": {"model": OTHER, "ema": {"module": PLAIN, "decay": 0.99}},
    **{f"beside-{name}.pth": {"state_dict": PLAIN, name: extra} for name, extra in EXTRAS.items()},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_clear_are_loaded(tmp_path, name, zipped):
    path = saved(FORMS[name], tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert equal(loaded(path), PLAIN)


@pytest.mark.parametrize("suffix", header.SUFFIXES)
def test_the_content_says_the_format_not_the_name(tmp_path, suffix):
    save_file(under("module."), tmp_path / f"w{suffix}", {"format": "pt"})
    assert equal(loaded(str(tmp_path / f"w{suffix}")), PLAIN)
    for zipped in (True, False):
        path = saved(PLAIN, tmp_path / f"t{suffix}", _use_new_zipfile_serialization=zipped)
        assert equal(loaded(path), PLAIN)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path, protocol):
    content = {"model": PLAIN, **EXTRAS}
    for zipped in (True, False):
        path = saved(content, tmp_path / "w.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert equal(loaded(path), PLAIN)


def test_views_of_one_storage_and_other_layouts_are_read(tmp_path):
    flat = torch.cat([tensor.flatten().double() for tensor in PLAIN.values()])
    views, start = {}, 0
    for name, tensor in PLAIN.items():
        views[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    views["head.weight"] = PLAIN["head.weight"].t().contiguous().t()
    views["stem.weight"] = PLAIN["stem.weight"].to(memory_format=torch.channels_last)
    for zipped in (True, False):
        assert equal(loaded(saved(views, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)), PLAIN)


def test_a_file_of_the_optimisers_averages_is_read(tmp_path):
    averaged = AveragedModel(Tiny())
    averaged.module.load_state_dict(PLAIN)
    assert equal(loaded(saved(averaged.state_dict(), tmp_path / "w.pth")), PLAIN)


@pytest.mark.parametrize("leaves", [("num_batches_tracked",), ("num_batches_tracked", "n_averaged")])
def test_buffers_that_count_may_be_missing(tmp_path, leaves):
    found = loaded(saved(without(*leaves), tmp_path / "w.pth"))
    assert int(found.pop("norm.num_batches_tracked")) == 0
    assert equal(found, without("num_batches_tracked"))


@pytest.mark.parametrize("leaf", ["running_mean", "running_var", "bias"])
def test_tensors_that_count_for_outputs_may_not_be_missing(tmp_path, leaf):
    refused(
        saved(without(leaf), tmp_path / "w.pth"),
        rf"not this model's weights: missing .*norm\.{leaf}.*; unexpected none",
    )


class Windows(nn.Module):
    """Like Swin and LeViT: a table of biases, and buffers that are computed from the sizes."""

    def __init__(self, num_classes: int = 3, sizes: bool = True) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(9))
        self.head = nn.Linear(4, num_classes)
        if sizes:
            self.register_buffer("relative_position_index", torch.arange(9))
            self.register_buffer("attn_mask", torch.tensor([0.0, -torch.inf]))


def test_buffers_that_are_computed_may_be_missing_or_more(tmp_path):
    with_sizes, plain = Windows(), Windows(sizes=False)
    fewer = weights.load(Windows(), saved(plain.state_dict(), tmp_path / "fewer.pth"))
    assert equal(fewer.state_dict(), {**with_sizes.state_dict(), **plain.state_dict()})
    more = weights.load(Windows(sizes=False), saved(with_sizes.state_dict(), tmp_path / "more.pth"))
    assert torch.equal(more.table, with_sizes.table)


def test_a_parameter_of_such_a_name_may_not_be_missing(tmp_path):
    model = Tiny()
    model.freqs = nn.Parameter(torch.rand(3))
    with pytest.raises(KtError, match="missing freqs"):
        weights.load(model, saved(PLAIN, tmp_path / "w.pth"))
    with pytest.raises(KtError, match="unexpected freqs"):
        weights.load(Tiny(), saved({**PLAIN, "freqs": torch.rand(3)}, tmp_path / "v.pth"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"student": PLAIN, "teacher": OTHER},
            r"two sets of weights fit \(`student` and `teacher`\), and .*; save one",
        ),
        (
            {"state_dict": {**under("encoder_q."), **under("encoder_k.", OTHER)}},
            r"\(`state_dict`, prefix `encoder_q.` and",
        ),
        ({"ema": PLAIN, "swa": OTHER, "model": OTHER}, r"two sets of weights fit \(`ema` and `swa`\)"),
        (
            {"state_dict": under("net.", without("bias"))},
            r"\(closest: `state_dict`, prefix `net.`\): missing head.bias, norm",
        ),
        ({**PLAIN, "aux.weight": torch.ones(2)}, r"missing none; unexpected aux.weight$"),
        (
            {**under("net."), "net.aux.weight": torch.ones(2)},
            r"closest: prefix `net.`\): missing none; unexpected aux.weight",
        ),
        ({"layer.weight": torch.ones(2)}, r"not this model's weights: missing head.bias, .*; unexpected layer.weight$"),
        (
            {**PLAIN, "stem.weight": torch.ones(6, 3, 3, 3)},
            r"1 tensors have another shape .*stem.weight is \[6, 3, 3, 3\], not",
        ),
        ({**PLAIN, "head.bias": torch.ones(4)}, r"have another shape than the model's: head.* is "),
        ({**PLAIN, "stem.bias": torch.full((6,), torch.nan)}, r"1 tensors hold numbers that are not finite: stem.bias"),
        (
            {**PLAIN, "head.bias": torch.tensor([0, torch.inf, 0])},
            r"1 tensors hold numbers that are not finite: head.bias",
        ),
        ({"a" * 500: torch.ones(2), "b\nc": torch.ones(2)}, r"unexpected a{77}…, b\?c"),
        ({"a.b": PLAIN["head.bias"], "module.a.b": PLAIN["head.bias"]}, "unexpected a.b, module.a.b"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_closest(tmp_path, content, line):
    for zipped in (True, False):
        refused(saved(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped), line)


def test_part_of_a_large_checkpoint_says_so(tmp_path):
    save_file({"stem.weight": PLAIN["stem.weight"]}, tmp_path / "model-00001-of-00003.safetensors")
    refused(str(tmp_path / "model-00001-of-00003.safetensors"), "it is part 1 of 3: join the parts to one file")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(
        str(tmp_path / "model.safetensors.index.json"), "lists the parts of weights .* join these to one .safetensors"
    )


# numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_the_models_and_that_is_said(tmp_path, caplog, dtype):
    other = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in PLAIN.items()}
    wanted = {name: tensor.to(PLAIN[name].dtype) for name, tensor in other.items()}
    save_file(other, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO):
        for path in (str(tmp_path / "w.safetensors"), saved(other, tmp_path / "w.pth")):
            assert equal(loaded(path), wanted)
    assert f"{str(dtype).removeprefix('torch.')} become float32" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: (t * 100).to(torch.int8), "int8"),
        (lambda t: (t * 100).to(torch.int64), "int64"),
        (lambda t: t > 0, "bool"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8"),
    ],
)
def test_numbers_of_another_kind_are_refused(tmp_path, make, said):
    content = {**PLAIN, "head.weight": make(PLAIN["head.weight"])}
    refused(
        saved(content, tmp_path / "w.pth"),
        f"1 tensors have other numbers .*: head.weight is {said}; save the weights as",
    )


def test_tensors_that_hold_no_plain_numbers_are_refused(tmp_path):
    for strange in (PLAIN["head.weight"].to_sparse(), PLAIN["head.weight"].to("meta")):
        refused(saved({**PLAIN, "head.weight": strange}, tmp_path / "w.pth"), "head.weight is")


# heads


def test_a_head_of_another_class_count_is_an_error_or_new(tmp_path):
    path = saved(trained(classes=7), tmp_path / "w.pth")
    refused(path, "its head has 7 outputs, but 3 are needed; give `finetune` for a new head, or leave the model out$")
    refused(path, "7 outputs, but 6 are needed; .* where output 0 is a background class, give labels from 1", classes=6)
    fresh = loaded(path, new_head=True)
    assert fresh["head.weight"].shape == (3, 6)
    assert torch.equal(fresh["stem.weight"], PLAIN["stem.weight"])
    assert torch.equal(loaded(path, 7, new_head=True)["head.weight"], trained(classes=7)["head.weight"])


def headless() -> Tensors:
    return {name: tensor for name, tensor in PLAIN.items() if not name.startswith("head.")}


@pytest.mark.parametrize(
    "more",
    [{}, {"head.mlp.0.weight": torch.ones(3)}, {"head.2.bias": torch.ones(3), "queue": torch.ones(2)}],
    ids=["none", "dino", "moco"],
)
def test_a_head_that_is_missing_is_an_error_or_new(tmp_path, more):
    names = {**headless(), **more}
    content = {f"{'' if name == 'queue' else 'encoder.'}{name}": tensor for name, tensor in names.items()}
    path = saved({"state_dict": content}, tmp_path / "w.pth")
    assert torch.equal(loaded(path, new_head=True)["norm.running_var"], PLAIN["norm.running_var"])
    if not more:
        refused(
            path,
            r"its weights \(closest: .*`encoder.`\) have no head \(missing head.bias, head.weight\); give `finetune`",
        )


def test_a_head_under_another_name_is_named(tmp_path):
    path = saved({**under("backbone.", headless()), "head.fc.weight": torch.ones(3, 6)}, tmp_path / "w.pth")
    refused(
        path,
        r"have no head \(missing head.bias, head.weight; beside it head.fc.weight\); give `finetune` for a fresh one",
    )


def test_half_a_head_is_not_a_head(tmp_path):
    path = saved({name: tensor for name, tensor in PLAIN.items() if name != "head.bias"}, tmp_path / "w.pth")
    refused(path, "missing head.bias; unexpected none")
    refused(path, "missing head.bias; unexpected none", new_head=True)


# what is said of what is not loaded


def test_what_is_left_out_is_said(tmp_path, caplog):
    content = {
        "state_dict": {**under("model."), "normalize.mean": torch.ones(1), "normalize.std": torch.ones(1)},
        "best": OTHER,
    }
    with caplog.at_level(logging.INFO):
        loaded(saved(content, tmp_path / "w.pth"))
    assert "loaded from `state_dict`, prefix `model.`" in caplog.text
    assert "left out: normalize (2 tensors)" in caplog.text
    assert "other weights, not loaded: `best`" in caplog.text


def test_averages_that_are_not_whole_are_said(tmp_path, caplog):
    loaded(saved({"model": PLAIN, "ema": without("running_mean", tensors=OTHER)}, tmp_path / "w.pth"))
    assert "other weights, not loaded: `ema` (it lacks norm.running_mean)" in caplog.text


def test_averages_without_names_are_said(tmp_path, caplog):
    content = {"model": PLAIN, "ema": {"decay": 0.9, "shadow_params": list(OTHER.values())}}
    assert equal(loaded(saved(content, tmp_path / "w.pth")), PLAIN)
    assert "other weights, not loaded: `ema.shadow_params` (it has no names)" in caplog.text


def test_a_plain_file_is_loaded_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        loaded(saved(PLAIN, tmp_path / "w.pth"))
    assert not caplog.records


# files of other kinds


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.ckpt"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "the file is empty"),
        (LFS, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "a web page; download the file itself"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
        (b"\x93NUMPY\x01", "a numpy array"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model; save the state_dict"),
        (b"PK\x03\x04" + bytes(50), "an archive that is cut off; copy it again"),
        (b"\x1f\x8b\x08", "compressed with gzip; unpack it first"),
        (b'{"weight_map": {}}', "JSON text"),
        (b"not weights at all", r"is not weights \("),
        (bytes(1000), r"is not weights \("),
        (b"\x80\x02.", r"is not weights \("),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    refused(str(tmp_path / name), line)


def test_other_things_than_files_of_weights_are_named(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    saved(PLAIN, tmp_path / "folder.pth" / "w.pth")
    refused(str(tmp_path / "folder.pth"), r"is a folder; give the file of weights in it: w.pth")
    refused(str(tmp_path / "none.pth"), "none.pth': no such file")
    (tmp_path / "w.npz").touch()
    refused(str(tmp_path / "w.npz"), r"w.npz' is no file of weights; allowed: .safetensors, .pth, .*, .ckpt, .pkl")
    np.savez(tmp_path / "arrays", a=np.zeros(3))
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.pth")
    refused(str(tmp_path / "arrays.pth"), "an archive of numpy arrays; save a state_dict")
    with zipfile.ZipFile(tmp_path / "any.pth", "w") as archive:
        archive.writestr("readme", "nothing")
    refused(str(tmp_path / "any.pth"), r"an archive without tensors; save the model's state_dict\(\)")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    refused(str(tmp_path / "plain.pth"), r"a pickle that torch.save did not write; save the model's state_dict\(\)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(Tiny()), tmp_path / "w.pt")
    refused(str(tmp_path / "w.pt"), "a TorchScript archive, whose code would run; save the model's state_dict")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"net": Tiny(), "epoch": 1},
            r"a whole model under 'net' \(Tiny\), whose code would run \(save its state_dict",
        ),
        (Tiny(), r"a whole model \(Tiny\), whose code would run \(save its state_dict"),
        ({"x": Unpickled()}, r"it holds the keys x, not tensors by name"),
        (Unpickled(), r"it holds a exec, not tensors by name"),
        ({"epoch": 1, "lr": 0.1}, r"it holds the keys epoch, lr, not tensors by name"),
        ({}, r"it holds nothing, not"),
        ([], r"it holds a list"),
        (torch.zeros(3), r"it holds a single tensor"),
        ([torch.zeros(3)], r"it holds a list"),
        ({"model": {"a": 1}}, r"it holds the keys model"),
        ({"stem": np.zeros(3)}, r"it holds numpy arrays"),
        ({0: torch.zeros(3)}, r"it holds the keys 0"),
    ],
)
def test_files_with_other_things_than_weights_are_never_run(tmp_path, content, line, zipped):
    refused(saved(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped), line)


def test_damage_among_the_numbers_is_found(tmp_path):
    path = Path(saved(PLAIN, tmp_path / "w.pth"))
    content = bytearray(path.read_bytes())
    at = content.index(PLAIN["stem.weight"].numpy().tobytes())
    content[at + 3] ^= 1
    path.write_bytes(content)
    refused(str(path), r"w.pth: weights cannot be read \(.*CRC")


@pytest.mark.parametrize(
    ("make", "kind"), [(torch.Tensor.to_sparse, "sparse"), (lambda t: t.to("meta"), "without numbers")]
)
def test_tensors_without_numbers_in_order_are_named(tmp_path, make, kind):
    content = {**PLAIN, "head.weight": make(PLAIN["head.weight"])}
    with pytest.raises(KtError, match=rf"1 tensors have .*: head.weight is {kind}"):
        loaded(saved(content, tmp_path / "w.pth"))
