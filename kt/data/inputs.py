"""Inputs of a model: images resized and normalised as it expects them, and training augmentation, all on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kt.data.clips import Videos, Watched
from kt.data.datasets import Dataset, Truths
from kt.data.seen import InputSpec, ViewsSpec
from kt.data.views import Boxes, Drawn, change_colours, draw_views
from kt.errors import KtError

IN_MEMORY = 1 << 29
"""Bytes of prepared images kept for the whole of a job; larger splits are prepared batch by batch."""


def to_unit(images: NDArray[np.uint8], spec: InputSpec, device: torch.device) -> Tensor:
    """Images uint8 [B, H, W, C] resized and cropped to a model's input, float32 [B, C, height, width] in [0, 1].

    The geometry is that of timm's ``transforms_imagenet_eval``, rounding included; it is computed on the device, in
    floating point instead of PIL's bytes, always antialiased when it shrinks.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device, non_blocking=True)
    x = x.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    x = resize(x, spec.resized(x.shape[-2], x.shape[-1]), spec.interpolation)
    return crop(x, spec.sides, spec.mean if spec.crop_mode == "border" else (0.0,))


def resize(x: Tensor, size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]) -> Tensor:
    """Float images [B, C, H, W] in [0, 1] at another size; overshoots of bicubic are clipped after rows and columns."""
    if x.shape[-2:] == size:
        return x
    if interpolation == "bilinear":
        shrinks = max(x.shape[-2:]) > max(size)
        return F.interpolate(x, size, mode="bilinear", antialias=shrinks)
    for step in ((x.shape[-2], size[1]), size):  # antialiased, torch's kernel is PIL's, also where it enlarges
        x = F.interpolate(x, step, mode="bicubic", antialias=True).clamp_(0, 1)
    return x


def crop(x: Tensor, size: tuple[int, int], fill: tuple[float, ...]) -> Tensor:
    """The centre [B, C, *size] of images [B, C, H, W]; beyond their edges is ``fill``, a value per channel."""
    height, width = x.shape[-2:]
    tall, wide = size
    if height < tall or width < wide:
        canvas = torch.tensor(fill, device=x.device).view(1, -1, 1, 1)
        canvas = canvas.expand(len(x), x.shape[1], max(height, tall), max(width, wide)).clone()
        top, left = max(tall - height, 0) // 2, max(wide - width, 0) // 2
        canvas[..., top : top + height, left : left + width] = x
        x = canvas
    top, left = round((x.shape[-2] - tall) / 2), round((x.shape[-1] - wide) / 2)
    return x[..., top : top + tall, left : left + wide]


def cut(images: NDArray[np.uint8], boxes: Boxes, spec: InputSpec, device: torch.device) -> Tensor:
    """Crops of images uint8 [B, H, W, C], mirrored or not, at a model's size, float32 [B, C, height, width] in [0, 1].

    Args:
        images: the images.
        boxes: one crop per image, [B, 5].
        spec: the model's input; its own crop is not used.
        device: where the crops are computed.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device, non_blocking=True).permute(0, 3, 1, 2)
    made = []
    for image, (top, left, height, width, mirrored) in zip(x, boxes.tolist(), strict=True):
        part = image[None, :, top : top + height, left : left + width].to(torch.float32).div_(255)
        part = resize(part, spec.sides, spec.interpolation)
        made.append(part.flip(-1) if mirrored else part)
    return torch.cat(made)


def show(images: NDArray[np.uint8], drawn: Drawn, spec: InputSpec, device: torch.device) -> Tensor:
    """Views of images uint8 [B, H, W, C], one per image, as ``cut`` gives them, with their colours changed."""
    if drawn.centre:
        mirrored = torch.from_numpy(drawn.boxes[:, 4] > 0).to(device)
        x = to_unit(images, spec, device)
        x = x.flip(-1).where(mirrored[:, None, None, None], x)
    else:
        x = cut(images, drawn.boxes, spec, device)
    return change_colours(x, drawn.colours) if drawn.colours else x


def normalise(x: Tensor, spec: InputSpec) -> Tensor:
    """Float images [B, C, H, W] in [0, 1] with the model's own mean and standard deviation, channels last in memory."""
    mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def as_clips(x: Tensor, frames: int) -> Tensor:
    """Frames [B · T, C, H, W] as clips [B, C, T, H, W], without a copy."""
    return x.view(-1, frames, *x.shape[1:]).transpose(1, 2)


class Inputs:
    """Images as a model sees them, by position: prepared once where they fit in ``IN_MEMORY`` bytes, else on demand.

    Clips share frames, and are always prepared on demand.

    Args:
        images: uint8 [N, H, W, C], memory-mapped or in memory.
        rows: which of them, int64 [n]; position i is the image at ``rows[i]``.
        spec: the model's input.
        device: of the prepared images.
        keep: false for a single pass over the images, which are then never all in memory.
        drawn: fixed views of the images, V · n of them; position i is then the view i, of the image at ``rows[i % n]``.
        videos: whose frames the images are, where the input is a clip.

    Raises:
        KtError: colours are to change, but the images are neither grey nor RGB.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        rows: NDArray[np.int64],
        spec: InputSpec,
        device: torch.device,
        keep: bool = True,
        drawn: Drawn | None = None,
        videos: Videos | None = None,
    ) -> None:
        if drawn and drawn.colours and images.shape[-1] not in (1, 3):
            text = f"needs grey or RGB images; these have {images.shape[-1]} channels"
            raise KtError(f"transfer.views.colour: {text}")
        self.spec, self.device = spec, device
        self._images, self._drawn, self._videos = images, drawn, videos
        self._rows = rows if drawn is None else np.tile(rows, len(drawn.boxes) // len(rows))
        size = 4 * len(self._rows) * images.shape[-1] * math.prod(spec.sides)
        self._prepared = self._prepare(slice(None)) if keep and not spec.clip and size <= IN_MEMORY else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: NDArray[np.int64] | slice) -> Tensor:
        """Float32 [b, C, height, width], of clips [b, C, T, height, width], on the device, channels last in memory."""
        if self._prepared is not None:
            return self._prepared[positions]
        return self._prepare(positions)

    def _prepare(self, positions: NDArray[np.int64] | slice) -> Tensor:
        if self.spec.clip:
            assert self._videos is not None, "clips are of videos"
            rows = self._videos.clips(self._rows[positions], self.spec.clip)
            frames = normalise(to_unit(self._images[rows.ravel()], self.spec, self.device), self.spec)
            return as_clips(frames, self.spec.clip.frames)
        images = self._images[self._rows[positions]]
        if self._drawn is None:
            return normalise(to_unit(images, self.spec, self.device), self.spec)
        return normalise(show(images, self._drawn.at(positions), self.spec, self.device), self.spec)


def inputs(
    data: Dataset, split: str, spec: InputSpec, device: torch.device, views: ViewsSpec | None, keep: bool = True
) -> Inputs:
    """A split's images as a model sees them; those of `transfer` in fixed views, where there are any."""
    rows = data.rows(split)
    drawn = draw_views(views, rows, *data.images.shape[1:3]) if views and split == "transfer" else None
    return Inputs(data.images, rows, spec, device, keep, drawn, data.videos)


def truths(data: Dataset, split: str, views: ViewsSpec | None) -> Truths | Watched:
    """Truths of a split's images; those of `transfer` in fixed views, where there are any, one for each view."""
    if not views or split != "transfer":
        return data.truths(split)
    rows = data.rows(split)
    drawn = draw_views(views, rows, *data.images.shape[1:3])
    return Truths(data.truth, np.tile(rows, views.n), drawn.cuts(*data.images.shape[1:3]) if data.dense else None)


def _shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image by up to a sixteenth of its shorter side in both directions; new borders are black."""
    n, _, height, width = x.shape
    reach = max(1, min(height, width) // 16)
    padded = F.pad(x, (reach, reach, reach, reach))
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n), generator=generator, device=x.device)
    rows = dy[:, None] + torch.arange(height, device=x.device)
    columns = dx[:, None] + torch.arange(width, device=x.device)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation 0.1 and clip to [0, 1]."""
    return (x + 0.1 * torch.randn(x.shape, generator=generator, device=x.device)).clamp_(0, 1)


def _erase(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken one square of three eighths of the shorter side in every image."""
    n, _, height, width = x.shape
    side, longer = max(1, 3 * min(height, width) // 8), max(height, width)
    drawn = torch.randint(0, longer - side + 1, (2, n), generator=generator, device=x.device)
    top, left = (
        place * (length - side + 1) // (longer - side + 1) for place, length in zip(drawn, (height, width), strict=True)
    )
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image, on average, from left to right."""
    mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return x.flip(-1).where(mirrored[:, None, None, None], x)


def _none(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": _none,
    "shift": _shift,
    "noise": _noise,
    "erase": _erase,
    "flip": _flip,
}
"""Augmentations by name: float images [B, C, H, W] in [0, 1] and a generator on their device to the same shape."""
