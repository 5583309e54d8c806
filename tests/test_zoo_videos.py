"""Networks of the zoo that take clips: the built-in ones, and published ones from clones of their repositories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch

import kt.zoo.videos  # noqa: F401 - registers the networks
from kt.data.seen import ClipSpec, InputSpec
from kt.errors import KtError
from kt.tasks.saliency import Saliency
from kt.tasks.segmentation import Segmentation
from kt.zoo import models, registry, segmentation
from kt.zoo.inference import channels_last
from kt.zoo.spec import Member, Recipe, ZooSpec

PRESETS = Path(__file__).resolve().parent.parent / "presets"
BUILT_IN = ["tiny_video_conv", "tiny_video_difference", "tiny_video_separable"]


@pytest.mark.parametrize("arch", BUILT_IN)
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (4, 20, 32), (7, 33, 18)])
def test_built_in_networks_give_a_map_of_half_the_size_for_any_clip(arch, frames, height, width):
    model = models.build(arch, {"width": 4}, 1, 3)
    shape = (3, frames, height, width)
    _, given = models.run_once(model, shape)
    models.check_outputs(given, Saliency().answer_shape(1), Saliency.least)
    models.check_training(model, shape, Saliency().answer_shape(1))
    assert given.shape == (1, (height + 1) // 2, (width + 1) // 2)


@pytest.mark.parametrize("arch", BUILT_IN)
def test_maps_depend_on_earlier_frames_and_on_their_order(arch):
    torch.manual_seed(0)
    model = models.build(arch, {}, 1, 3).eval()
    clip = torch.randn(1, 3, 4, 16, 16)
    swapped, other = clip[:, :, [1, 0, 2, 3]], clip.clone()
    other[:, :, 0] += 1
    with torch.no_grad():
        found = model(clip)
        assert not torch.allclose(model(other), found)
        assert not torch.allclose(model(swapped), found)


def test_only_networks_for_classes_of_pixels_are_told_to_become_encoders(monkeypatch):
    found = "the model gives [1, 1, 8, 8] of float32 for one image"
    monkeypatch.setattr(registry, "probes", lambda wanted, modules: [found])
    spec = InputSpec(size=16, mean=(0.5,), std=(0.25,), clip=ClipSpec(frames=2))
    zoo = ZooSpec(input=spec, models={"own": Member(arch="own_net", train=Recipe(epochs=1))})
    for task, hint in ((Saliency(), ""), (Segmentation(), "; as an encoder: arch: smp_unet, args: {encoder: own_net}")):
        with pytest.raises(KtError) as refused:
            segmentation.probe(zoo, 2, 3, task.answer_shape(2))
        assert str(refused.value) == f"zoo.models.own: {found}{hint}"


def test_weights_of_clips_stay_as_they_are_where_those_of_images_have_channels_last():
    video = channels_last(models.build("tiny_video_conv", {}, 1, 3))
    assert video.stem[0].weight.is_contiguous()
    image = channels_last(torch.nn.Conv2d(3, 4, 3))
    assert image.weight.is_contiguous(memory_format=torch.channels_last)


CODE = """
import torch
from torch import nn
from model_utils import WIDTH

class Network(nn.Module):
    def __init__(self, args, clips=8):
        super().__init__()
        self.backbone = nn.Conv3d(3, WIDTH, (clips, 3, 3), padding=(0, 1, 1))
        self.decoder = nn.Conv2d(WIDTH, 1, 1)
        self.scale = args.scale

    def forward(self, x):
        n, c, t, h, w = x.size()
        features = self.backbone(x.view(n, c, t, h, w))[:, :, 0]
        return self.scale * torch.sigmoid(self.decoder(features))
"""


@pytest.fixture
def clones(tmp_path, monkeypatch):
    """Two repositories whose files have the same names."""
    monkeypatch.syspath_prepend(str(PRESETS))
    __import__("vinet")
    for name, width in (("first", 4), ("second", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_utils.py").write_text(f"WIDTH = {width}\n", "utf-8")
        (tmp_path / name / "model.py").write_text(CODE, "utf-8")
    return tmp_path


def test_published_networks_come_from_clones_of_their_repositories(clones):
    given = {"network": "model.Network", "options": {"clips": 5}, "namespace": {"scale": 2.0}}
    built = {
        name: timm.create_model("published_video", code=str(clones / name), **given) for name in ("first", "second")
    }
    assert [model.backbone.out_channels for model in built.values()] == [4, 6]
    assert {"model", "model_utils"}.isdisjoint(sys.modules)
    names = {"backbone.weight", "backbone.bias", "decoder.weight", "decoder.bias"}  # as in the published files
    assert set(built["first"].state_dict()) == names
    clips = torch.rand(2, 5, 3, 12, 10).transpose(1, 2)  # not contiguous
    found = built["first"](clips)
    assert found.shape == (2, 12, 10)
    assert (found >= 0).all()


def test_a_network_that_is_not_there_is_named(clones):
    for network, expected in {
        "net.Network": "no file for 'net.Network'",
        "Network": "needed: FILE.CLASS",
        "model.Net": "model.py in .* has no network 'Net'",
        "model.WIDTH": "has no network 'WIDTH'",
    }.items():
        with pytest.raises(ImportError, match=expected):
            timm.create_model("published_video", code=str(clones / "first"), network=network)
