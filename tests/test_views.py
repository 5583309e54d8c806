"""What a model sees of an image, and augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from images import images_of, input_of
from PIL import Image

from kt.data import inputs
from kt.data.seen import InputSpec

CPU = torch.device("cpu")


def test_to_unit_scales_to_zero_and_one_without_resizing():
    images = images_of()
    found = inputs.to_unit(images, input_of(6), CPU)
    np.testing.assert_allclose(found.numpy(), images.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert found.dtype == torch.float32


def plain_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of a square [H, H] with pixel centres at 0.5, slowly."""
    side = len(image)
    out = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (min(max((k + 0.5) * side / size - 0.5, 0), side - 1) for k in (i, j))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out


@pytest.mark.parametrize("size", [8, 13, 16])
def test_enlarging_is_bilinear(size):
    images = images_of(2, 8, 1)
    found = inputs.to_unit(images, input_of(size), CPU)
    for image, result in zip(images[..., 0] / 255, found[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(result, plain_bilinear(image, size), atol=1e-6)


def test_shrinking_looks_at_every_pixel():
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[0, 0, 0] = 255  # between the points that plain bilinear shrinking by 4 would read
    found = inputs.to_unit(image, input_of(4), CPU)
    assert found[0, 0, 0, 0] > 0
    grey = inputs.to_unit(np.full((1, 16, 16, 1), 51, np.uint8), input_of(4), CPU)
    torch.testing.assert_close(grey, torch.full((1, 1, 4, 4), 0.2))


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    images, spec = images_of(), InputSpec(size=6, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = inputs.to_unit(images, spec, CPU)
    found = inputs.normalise(x, spec)
    expected = (images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def pictures(height: int, width: int, n: int = 2) -> np.ndarray:
    """Smooth images with edges and noise, uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (n, 7, 9, 3), dtype=np.uint8)
    large = np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse])
    large[:, height // 3 : height // 2, width // 4 : width // 2] = [[[250, 20, 90]]]
    return np.clip(large + rng.normal(0, 8, large.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("height", "width", "size", "crop_pct"),
    [
        *((256, 256, 224, 0.875), (256, 256, 224, 1.0), (97, 160, 64, 0.9), (40, 64, 96, 0.95), (80, 60, 48, 1.15)),
        *((97, 160, (48, 64), 0.9), (97, 160, (64, 32), 1.0), (60, 40, (64, 96), 0.875), (50, 80, (30, 20), 1.15)),
    ],
)
def test_a_models_view_is_timms_up_to_pils_rounding_to_bytes(height, width, size, crop_pct, crop_mode, interpolation):
    from timm.data.transforms_factory import create_transform

    images = pictures(height, width)
    spec = input_of(size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)
    geometry = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    transform = create_transform((3, *spec.sides), mean=spec.mean, std=spec.std, **geometry)
    theirs = torch.stack([transform(Image.fromarray(image)) for image in images])
    ours = inputs.normalise(inputs.to_unit(images, spec, CPU), spec)
    levels = 255 * (ours - theirs).abs() * torch.tensor(spec.std).view(3, 1, 1)
    assert levels.mean() < 0.4
    # Pillow may take the columns first where the sides shrink unequally, and cuts overshoots off in between
    assert levels.max() < (6 if (crop_mode, interpolation) == ("squash", "bicubic") else 1.5)
    if (height, width) == (256, 256) and crop_pct == 0.875:
        torch.testing.assert_close(ours, theirs)  # the store has the resized image's size: nothing is resized


def test_the_border_of_a_small_image_is_the_mean_and_otherwise_black():
    image = np.full((1, 8, 4, 3), 255, np.uint8)
    for crop_mode, value in [
        ("border", torch.zeros(3)),
        ("center", -torch.tensor([0.1, 0.2, 0.3]) / torch.tensor([0.5, 1, 2])),
    ]:
        spec = input_of(8, crop_mode=crop_mode, crop_pct=1.0 if crop_mode == "border" else 2.0)
        seen = inputs.normalise(inputs.to_unit(image, spec, CPU), spec)[0]
        torch.testing.assert_close(seen[:, 4, 0], value)
        torch.testing.assert_close(seen[:, 4, 4], (1 - torch.tensor(spec.mean)) / torch.tensor(spec.std))


@pytest.mark.parametrize(("in_memory", "keep"), [(1 << 29, True), (0, True), (1 << 29, False)])
def test_inputs_are_the_prepared_images_at_the_given_rows(monkeypatch, in_memory, keep):
    monkeypatch.setattr(inputs, "IN_MEMORY", in_memory)
    images, rows = images_of(9), np.array([7, 2, 2, 0, 5])
    spec = InputSpec(size=9, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    seen = inputs.Inputs(images, rows, spec, CPU, keep)
    expected = inputs.normalise(inputs.to_unit(images[rows], spec, CPU), spec)
    assert len(seen) == 5
    assert torch.equal(seen[np.array([4, 0, 1])], expected[[4, 0, 1]])
    assert torch.equal(seen[slice(1, 9)], expected[1:])


@pytest.mark.parametrize("name", inputs.AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (1, 1, 5, 5), (3, 1, 8, 12), (2, 1, 1, 1)])
def test_augmentations_keep_shape_and_range_and_depend_on_the_generator_alone(name, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before, outside = x.clone(), torch.get_rng_state()
    augment = inputs.AUGMENTATIONS[name]
    found = [augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert found[0].shape == x.shape
    assert (found[0].min() >= 0, found[0].max() <= 1) == (True, True)
    assert torch.equal(found[0], found[1])
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), outside)
    if name != "none" and shape[-1] > 1 and (name, shape[0]) != ("flip", 1):
        assert not torch.equal(found[0], found[2])


def test_shift_moves_every_image_whole_by_up_to_a_sixteenth_and_fills_with_black():
    side, reach = 32, 2
    x = torch.rand(60, 2, side, side, generator=torch.Generator().manual_seed(0)) + 0.01
    moved = inputs.AUGMENTATIONS["shift"](x, torch.Generator().manual_seed(1))
    offsets = set()
    for image, result in zip(x, moved, strict=True):
        filled = (result[0] > 0).nonzero()
        (top, left), (bottom, right) = filled.amin(0).tolist(), filled.amax(0).tolist()
        # rows and columns that went over the edge are gone, as many came in black on the other side
        dy, dx = top or bottom - (side - 1), left or right - (side - 1)
        expected = torch.zeros_like(image)
        for i in range(side):
            for j in range(side):
                if 0 <= i - dy < side and 0 <= j - dx < side:
                    expected[:, i, j] = image[:, i - dy, j - dx]
        assert torch.equal(result, expected)
        offsets.add((dy, dx))
    assert len(offsets) > 15
    assert {abs(offset) for pair in offsets for offset in pair} == set(range(reach + 1))


def test_erase_blackens_one_square_of_all_channels_and_nothing_else():
    x = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.01
    erased = inputs.AUGMENTATIONS["erase"](x, torch.Generator().manual_seed(1))
    black = erased == 0
    assert torch.equal(erased[~black], x[~black])
    corners = set()
    for mask in black:
        assert torch.equal(mask[0], mask[1])
        assert torch.equal(mask[0], mask[2])
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        assert (len(rows), len(columns), int(mask[0].sum())) == (6, 6, 36)
        assert (int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) == (5, 5)
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 10


def test_noise_has_the_deviation_it_promises():
    x = torch.full((8, 1, 64, 64), 0.5)
    noisy = inputs.AUGMENTATIONS["noise"](x, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.002)


def test_no_augmentation_gives_the_images_themselves():
    x = torch.rand(2, 1, 4, 4)
    assert inputs.AUGMENTATIONS["none"](x, torch.Generator()) is x
