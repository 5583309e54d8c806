"""Fixed random changes of a view's colours, and views that show what evaluation shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kt.data.inputs import Inputs
from kt.data.seen import ColourSpec, InputSpec, ViewsSpec
from kt.data.views import Colours, change_colours, draw_colours, draw_views
from kt.errors import KtError

CPU = torch.device("cpu")
SPEC = InputSpec(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop_pct=0.8)
FG = ViewsSpec(
    n=2, crop="center", colour=ColourSpec(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2), grey=0.2
)
RED = torch.tensor([0.6, 0.2, 0.2])[:, None, None].expand(3, 2, 2)


def images(n: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 20, 24, channels), dtype=np.uint8)


def changed(image: torch.Tensor, amounts: tuple[float, ...], order: tuple[int, ...] = (0, 1, 2, 3), grey: bool = False):
    found = change_colours(image[None], Colours(np.array([amounts]), np.array([order]), np.array([grey])))
    assert found.shape == (1, *image.shape)
    return found[0]


def test_changes_by_hand():
    assert torch.equal(changed(RED, (1, 1, 1, 0)), RED)
    torch.testing.assert_close(changed(RED, (1.5, 1, 1, 0))[:, 0, 0], torch.tensor([0.9, 0.3, 0.3]))
    torch.testing.assert_close(changed(RED, (2.0, 1, 1, 0))[:, 0, 0], torch.tensor([1.0, 0.4, 0.4]))  # cut off at 1
    grey = 0.2989 * 0.6 + (0.587 + 0.114) * 0.2
    torch.testing.assert_close(changed(RED, (1, 1, 0, 0))[:, 0, 0], torch.full((3,), grey))
    torch.testing.assert_close(changed(RED, (1, 1, 1, 0), grey=True)[:, 0, 0], torch.full((3,), grey))
    torch.testing.assert_close(changed(RED, (1, 1, 1, 1 / 3))[:, 0, 0], torch.tensor([0.2, 0.6, 0.2]))  # red to green
    halves = torch.tensor([[0.2, 0.6]]).expand(3, 2, 2)
    mean = 0.4 * (0.2989 + 0.587 + 0.114)
    expected = torch.tensor([0.5 * 0.2 + 0.5 * mean, 0.5 * 0.6 + 0.5 * mean])
    torch.testing.assert_close(changed(halves, (1, 0.5, 1, 0))[0, 0], expected)


def test_the_order_of_changes_matters():
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    amounts = (1.7, 1.6, 1.5, 0.1)
    assert not torch.allclose(changed(image, amounts), changed(image, amounts, (3, 2, 1, 0)))


def test_changes_have_the_shares_and_strengths_asked_for():
    drawn = draw_colours(FG, np.arange(4_000))
    assert drawn is not None
    still = (drawn.amounts == [1, 1, 1, 0]).all(1)
    assert abs(still.mean() - 0.2) < 0.02
    assert abs(drawn.grey.mean() - 0.2) < 0.02
    moved = drawn.amounts[~still]
    for column, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        assert low <= moved[:, column].min() < low + 0.01
        assert high - 0.01 < moved[:, column].max() <= high
    first = np.bincount(drawn.order[:, 0], minlength=4) / len(drawn.order)
    assert np.abs(first - 0.25).max() < 0.03
    assert (np.sort(drawn.order, 1) == np.arange(4)).all()


def test_changes_depend_on_image_and_view_alone_and_leave_the_crops_as_they_are():
    rows, plain = np.array([4, 9, 2]), ViewsSpec(n=2)
    coloured = ViewsSpec(n=2, colour=FG.colour, grey=0.2)
    some, every = (draw_views(coloured, r, 30, 30) for r in (rows, np.arange(10)))
    assert some.colours is not None
    assert every.colours is not None
    for part, whole in zip(some.colours, every.colours, strict=True):
        assert np.array_equal(part.reshape(2, 3, -1), whole.reshape(2, 10, -1)[:, rows])
    assert draw_views(plain, rows, 30, 30).colours is None
    assert np.array_equal(draw_views(plain, rows, 30, 30).boxes, some.boxes)


def test_a_centre_view_is_what_evaluation_shows_mirrored_or_not():
    pictures, rows = images(9), np.arange(9)
    drawn = draw_views(ViewsSpec(n=2, crop="center"), rows, 20, 24)
    views = Inputs(pictures, rows, SPEC, CPU, drawn=drawn)
    shown = Inputs(pictures, rows, SPEC, CPU)[slice(None)]
    mirrored = drawn.boxes[:, 4] > 0
    assert 0 < mirrored.sum() < 18
    for position in range(18):
        expected = shown[position % 9].flip(-1) if mirrored[position] else shown[position % 9]
        assert torch.equal(views[np.array([position])][0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_grey_and_colour_images_change_and_stay_between_black_and_white(channels):
    spec = SPEC.model_copy(update={"mean": (0.0,) * channels, "std": (1.0,) * channels})
    pictures, rows = images(9, channels), np.arange(9)
    found = Inputs(pictures, rows, spec, CPU, drawn=draw_views(FG, rows, 20, 24))[slice(None)]
    plain = ViewsSpec(n=2, crop="center")
    assert not torch.allclose(
        found, Inputs(pictures, rows, spec, CPU, drawn=draw_views(plain, rows, 20, 24))[slice(None)]
    )
    assert found.min() >= 0
    assert found.max() <= 1


def test_images_that_are_neither_grey_nor_rgb_are_refused():
    with pytest.raises(KtError, match=r"transfer\.views\.colour: needs grey or RGB images; these have 4 channels"):
        Inputs(images(2, 4), np.arange(2), SPEC, CPU, drawn=draw_views(FG, np.arange(2), 20, 24))


def test_views_without_the_newer_keys_have_the_plain_form_that_they_had():
    assert ViewsSpec(n=2).plain() == {"n": 2, "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "flip": True}
    assert {"crop", "colour", "grey"} < set(FG.plain())
    assert ViewsSpec.model_validate(FG.model_dump()) == FG


@pytest.mark.parametrize(
    ("views", "key"),
    [
        ({"grey": 1.5}, "grey"),
        ({"crop": "centre"}, "crop"),
        ({"colour": {"hue": 0.6}}, "colour.hue"),
        ({"colour": {"p": -0.1}}, "colour.p"),
    ],
)
def test_colours_out_of_range_are_refused(views, key):
    with pytest.raises(ValueError, match=rf"(?m)^{key}$"):
        ViewsSpec.model_validate({"n": 1, **views})
