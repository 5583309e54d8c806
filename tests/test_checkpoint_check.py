"""Checkpoints against their architecture: checked with the configuration, before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import Settings, Tensors, Tiny, saved, trained, under
from torch import nn

from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.zoo import header, members, models, registry
from kt.zoo.fit import fit
from kt.zoo.header import differing
from kt.zoo.spec import FineTune, Member, ZooSpec

INPUT = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PLAIN = trained()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> registry.Registry:
    """timm's models, with outlines made in this process."""

    def outlines(wanted: Any, modules: Any) -> list[Any]:
        made = models.outlines(wanted)
        return [outline if isinstance(outline, str) else registry._slots(outline) for outline in made]

    monkeypatch.setattr(registry, "outlines", outlines)
    return registry.load()


def checked(known: registry.Registry, path: str, needs: int | None = None, colours: int = 3, **member: Any) -> None:
    zoo = ZooSpec(
        input=INPUT, models={"a": Member.model_validate({"arch": "test_resnet", "checkpoint": path, **member})}
    )
    members.check(zoo, known)
    members.check_checkpoints({"zoo.models.a": (zoo.models["a"], colours)}, (), known, needs)


def resnet(classes: int = 5) -> Tensors:
    torch.manual_seed(0)
    return models.build("test_resnet", {}, classes, 3).state_dict()


def test_the_configuration_is_checked_against_the_files_names(known, tmp_path):
    path = saved({"state_dict": under("module.", resnet())}, tmp_path / "w.pth")
    checked(known, path)
    checked(known, path, 5)
    with pytest.raises(KtError, match=r"^zoo.models.a.checkpoint: .*w.pth: its head has 5 outputs, but 4 are"):
        checked(known, path, 4)
    checked(known, path, 4, finetune=FineTune(mode="linear", epochs=1))
    checked(known, path, 7, classes=(0, 1, 2, 3, 4))
    with pytest.raises(KtError, match=r"^zoo.models.a.checkpoint: .*w.pth: not this model's weights.*: missing "):
        checked(known, path, arch="test_vit")
    with pytest.raises(KtError, match=r"tensors have another shape than the model's .*conv1.*, not \[\d+, 4, 3, 3\]"):
        checked(known, path, colours=4)
    with pytest.raises(KtError, match=r"^zoo.models.a: .*test_resnet cannot be built with .*chanels"):
        checked(known, path, args={"chanels": 3})


@pytest.mark.parametrize(
    "beside",
    [
        {"arch": "tf_efficientnet_b0"},
        {"arch": "tf_efficientnet_b0_ns"},
        {"args": argparse.Namespace(model="tf_efficientnet_b0.ns_jft_in1k")},
        {"hyper_parameters": Settings(model_name="timm/tf_efficientnet_b0.ns_jft_in1k")},
        {"args": {"arch": "hf-hub:timm/tf_efficientnet_b0.ns_jft_in1k"}},
    ],
)
def test_a_file_that_names_another_architecture_is_refused_with_both_names(known, tmp_path, beside):
    path = saved({"state_dict": resnet(), **beside}, tmp_path / "w.pth")
    with pytest.raises(
        KtError, match=r"zoo.models.a.arch: 'test_resnet', but .* are of 'tf_efficientnet_b0'; give that"
    ):
        checked(known, path)


def test_the_hub_names_its_architecture_in_the_header_or_beside_the_file(known, tmp_path):
    save_file(resnet(), tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "num_classes": 5}')
    with pytest.raises(KtError, match=r"'test_resnet', but .*model.safetensors its weights are of 'test_vit'"):
        checked(known, path)
    for text in ('{"architecture": "test_resnet"}', "[]", "{", '{"architectures": ["ViTModel"]}'):
        (tmp_path / "config.json").write_text(text)
        checked(known, path)
    save_file(resnet(), tmp_path / "other.safetensors", {"format": "pt", "arch": "test_vit"})
    with pytest.raises(KtError, match=r"'test_resnet', but .*other.safetensors its weights are of 'test_vit'"):
        checked(known, str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("arch", ["test_resnet", "test_resnet.r160_in1k", "TestNet", "resnet20", "", 3, None])
def test_a_file_that_names_no_other_architecture_is_taken(known, tmp_path, arch):
    checked(known, saved({"state_dict": resnet(), "arch": arch}, tmp_path / "w.pth"))


def test_heads_are_told_from_the_rest_without_a_named_classifier():
    outline = models.outline(Tiny)
    assert {name for name, slot in outline.items() if None in slot.shape} == {"head.weight", "head.bias"}
    assert outline["norm.running_mean"].buffer
    assert outline["norm.num_batches_tracked"].kind == "whole"


def test_a_head_may_have_a_class_for_nothing(tmp_path):
    """As query networks have: one class more than the data set, so a checkpoint for 7 classes has 8."""

    def built(outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, outputs + 1))

    outline = models.outline(built)
    assert [(slot.shape, slot.more) for slot in outline.values()] == [
        ((3, 2), 0),
        ((3,), 0),
        ((None, 3), 1),
        ((None,), 1),
    ]
    path = tmp_path / "seven.safetensors"
    save_file(built(7).state_dict(), path)
    found = fit(header.read("checkpoint", path), outline, new_head=False)
    assert found.outputs == 7
    assert outline["1.bias"].full(7) == (8,)


def test_outlines_leave_torchs_generator_as_it_was():
    def stubborn(classes: int) -> nn.Module:
        assert float(torch.ones(1)) == 1  # without memory there are no values
        return Tiny(classes)

    for build in (Tiny, stubborn):
        torch.manual_seed(3)
        assert models.outline(build).keys() == PLAIN.keys()
        assert torch.initial_seed() == 3
        first = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(1), first)


def test_outlines_are_asked_for_once_and_refusals_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def ask(what: str, modules: Any, text: str) -> list[Any]:
        asked.append(text)
        return [{"w": {"shape": [2, None], "buffer": False, "kind": "floating", "same": None}}, "refused"]

    monkeypatch.setattr(registry, "_ask", ask)
    first = registry.outlines([("a", {}, 3), ("b", {}, 3)])
    assert first == [{"w": models.Slot((2, None))}, "refused"]
    monkeypatch.setattr(registry, "_ask", lambda what, modules, text: asked.append(text) or ["refused"])
    assert registry.outlines([("a", {}, 3), ("b", {}, 3)]) == first
    assert asked == ['[["a", {}, 3], ["b", {}, 3]]', '[["b", {}, 3]]']


def test_files_are_looked_into_without_torch(python, tmp_path):
    path = saved({"state_dict": under("module."), "args": argparse.Namespace(model="x")}, tmp_path / "w.pth")
    save_file(PLAIN, tmp_path / "w.safetensors")
    ended = python(
        "import sys; from pathlib import Path; from kt.zoo import header, members;"
        "print([len(header.read('', Path(path)).sets()[0][1]) for path in sys.argv[1:]], 'torch' in sys.modules)",
        path,
        tmp_path / "w.safetensors",
    )
    assert ended.stdout == "[9, 9] False\n", ended.stderr


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        ({}, {}, []),
        ({"args": argparse.Namespace(mean=None, std=None, img_size=None, interpolation="", model_kwargs={})}, {}, []),
        ({"args": argparse.Namespace(mean=[0.5, 0.5, 0.5], img_size=32, input_size=[3, 32, 32])}, {}, []),
        ({"args": argparse.Namespace(mean=[0.4, 0.5, 0.5])}, {}, ["mean [0.4, 0.5, 0.5], here (0.5, 0.5, 0.5)"]),
        ({"args": argparse.Namespace(img_size=224)}, {}, ["size 224, here 32"]),
        ({"args": {"input_size": (3, 64, 64), "crop_pct": 0.9}}, {}, ["crop_pct 0.9, here 1.0", "size 64, here 32"]),
        ({"args": argparse.Namespace(bn_eps=0.001)}, {}, ["args.bn_eps 0.001, here None"]),
        ({"args": argparse.Namespace(bn_eps=0.001)}, {"bn_eps": 1e-3}, []),
        ({"args": argparse.Namespace(model_kwargs={"act_layer": "gelu"})}, {}, ["args.act_layer gelu, here None"]),
        ({"args": argparse.Namespace(model_kwargs={"act_layer": "gelu"})}, {"act_layer": "gelu"}, []),
        ({"args": "--lr 0.1", "config": Settings(mean=nn.Linear(1, 1))}, {}, []),
    ],
)
def test_settings_of_the_training_that_are_not_the_members_are_said(tmp_path, content, args, said):
    file = header.read("", Path(saved({"state_dict": PLAIN, **content}, tmp_path / "w.pth")))
    assert differing(file, args, INPUT) == said


def test_the_hubs_settings_are_compared_too(tmp_path):
    save_file(PLAIN, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"std": [0.5, 0.5, 0.5], "input_size": [3, 32, 32]}}')
    file = header.read("", tmp_path / "model.safetensors")
    assert differing(file, {}, INPUT) == ["std [0.5, 0.5, 0.5], here (0.25, 0.25, 0.25)"]
