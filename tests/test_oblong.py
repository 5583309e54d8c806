"""Images whose height and width differ: as they are stored, as models see them, and in fixed views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from images import images_of, input_of
from PIL import Image
from pydantic import ValidationError

from kt import store
from kt.data import inputs
from kt.data.fit import fit
from kt.data.seen import ViewsSpec
from kt.data.spec import DataSpec
from kt.data.views import draw_views

CPU = torch.device("cpu")


def test_two_equal_sides_are_one_number_so_that_digests_of_square_inputs_stay():
    one, two = input_of(8), input_of((8, 8))
    assert one == two
    assert one.size == two.size == 8
    assert store.digest(one.plain()) == store.digest(two.plain())
    oblong = input_of((8, 12))
    assert (oblong.size, oblong.sides, oblong.shape(1), oblong.side) == ((8, 12), (8, 12), (3, 8, 12), 10)
    assert input_of(oblong.plain()["size"]) == oblong
    assert store.digest(oblong.plain()) != store.digest(input_of((12, 8)).plain())


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8", (8,), (8, 8, 8), (8, 0), (8, True), [8, "8"], None])
def test_a_size_is_a_number_of_pixels_or_two(size):
    with pytest.raises(ValidationError, match=r"needs a whole number of pixels greater than 0, or \[height, width\]"):
        input_of(size)


def test_a_data_set_of_one_task_has_the_keys_that_it_had():
    spec = DataSpec.model_validate({"source": "digits", "splits": {"transfer": 9, "validation": 9, "test": 9}})
    assert "task" not in spec.plain()
    assert DataSpec.model_validate({**spec.plain(), "task": "other"}).plain()["task"] == "other"


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (7, 40)])
@pytest.mark.parametrize(("height", "width"), [(50, 64), (64, 50), (20, 30), (11, 90)])
def test_a_stored_image_is_resized_until_it_just_covers_its_size(height, width, size):
    coarse = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    found = fit(picture, size, 3)
    assert found.shape == (*size, 3)
    ratio = min(height / size[0], width / size[1])
    whole = picture.resize((round(width / ratio), round(height / ratio)), Image.Resampling.BICUBIC)
    top, left = round((whole.height - size[0]) / 2), round((whole.width - size[1]) / 2)
    assert np.array_equal(found, np.asarray(whole)[top : top + size[0], left : left + size[1]])
    assert np.array_equal(fit(np.asarray(picture), size, 3), found)


def test_prepared_images_and_their_views_have_the_inputs_height_and_width(monkeypatch):
    images, spec = images_of(6, 16, 3)[:, :10], input_of((12, 20))
    views = ViewsSpec(n=2)
    for kept in (1 << 29, 0):
        monkeypatch.setattr(inputs, "IN_MEMORY", kept)
        drawn = draw_views(views, np.arange(6), 10, 16)
        assert inputs.Inputs(images, np.arange(6), spec, CPU)[slice(0, 4)].shape == (4, 3, 12, 20)
        assert inputs.Inputs(images, np.arange(6), spec, CPU, drawn=drawn)[slice(None)].shape == (12, 3, 12, 20)


def test_memory_of_prepared_images_is_that_of_their_area(monkeypatch):
    images = images_of(6, 16, 3)
    for size, kept in [((12, 20), 4 * 6 * 3 * 12 * 20), (12, 4 * 6 * 3 * 12 * 12)]:
        for room, there in [(kept, True), (kept - 1, False)]:
            monkeypatch.setattr(inputs, "IN_MEMORY", room)
            assert (inputs.Inputs(images, np.arange(6), input_of(size), CPU)._prepared is not None) is there


@pytest.mark.parametrize("shape", [(400, 1, 8, 24), (400, 1, 24, 8)])
def test_erased_squares_of_oblong_images_lie_everywhere_inside(shape):
    x = torch.ones(shape)
    erased = inputs.AUGMENTATIONS["erase"](x, torch.Generator().manual_seed(0)) == 0
    assert (erased.sum((1, 2, 3)) == 9).all()
    assert erased.any(0).all()
