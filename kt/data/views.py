"""Fixed random views of the transfer images: crops, mirroring and changes of colour, the same for every model.

Sources: crops as in Szegedy et al. 2015, section 6, with torchvision's scale and ratio; a crop that would reach beyond
the image is cut to it, where torchvision draws again. Colours as in Chen, Kornblith, Norouzi, Hinton, A Simple
Framework for Contrastive Learning of Visual Representations, 2020, appendix A, with torchvision's operations in random
order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional

from kt.data.seen import ColourSpec, ViewsSpec

Boxes = NDArray[np.int32]
"""Top, left, height and width of the crop in pixels, and 1 where it is mirrored, [V · n, 5], view after view."""


CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


class Colours(NamedTuple):
    """Changes of colour of V · n views, view after view.

    Attributes:
        amounts: factors of brightness, contrast and saturation, and turns of the hue, float64 [V · n, 4].
        order: order of the changes, int64 [V · n, 4].
        grey: whether the view becomes grey in the end, bool [V · n].
    """

    amounts: NDArray[np.float64]
    order: NDArray[np.int64]
    grey: NDArray[np.bool_]

    def at(self, positions: NDArray[np.int64] | slice) -> Colours:
        """The changes of some views."""
        return Colours(self.amounts[positions], self.order[positions], self.grey[positions])


class Drawn(NamedTuple):
    """V · n views of n images, view after view.

    Attributes:
        boxes: the crops; where ``centre`` is true, only their mirroring is used.
        centre: whether views show the part that evaluation shows, instead of the crops.
        colours: changes of colour, if any.
    """

    boxes: Boxes
    centre: bool = False
    colours: Colours | None = None

    def at(self, positions: NDArray[np.int64] | slice) -> Drawn:
        """Some of the views."""
        return Drawn(self.boxes[positions], self.centre, self.colours and self.colours.at(positions))

    def cuts(self, height: int, width: int) -> Boxes:
        """The parts of images that views show to a model that sees whole images: crops, or the images themselves."""
        if not self.centre:
            return self.boxes
        whole = np.broadcast_to(np.array([0, 0, height, width], np.int32), (len(self.boxes), 4))
        return np.column_stack([whole, self.boxes[:, 4]])


def draw_views(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int) -> Drawn:
    """All views of some images; a view depends on its image's row and its own number alone.

    Args:
        views: how many, how large, and how their colours change.
        rows: of the images in the data set, int64 [n].
        height: of the stored images, pixels.
        width: of the stored images, pixels.
    """
    boxes = np.concatenate([_boxes(views, rows, height, width, view) for view in range(views.n)])
    return Drawn(boxes, views.crop == "center", draw_colours(views, rows))


def _boxes(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int, view: int) -> Boxes:
    u = np.random.default_rng(view).random((int(rows.max()) + 1, 5))[rows]
    area = height * width * (views.scale[0] + (views.scale[1] - views.scale[0]) * u[:, 0])
    low, high = np.log(views.ratio)
    ratio = np.exp(low + (high - low) * u[:, 1])
    tall = np.clip(np.rint(np.sqrt(area / ratio)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area * ratio)), 1, width)
    top, left = np.floor(u[:, 2] * (height - tall + 1)), np.floor(u[:, 3] * (width - wide + 1))
    return np.column_stack([top, left, tall, wide, (u[:, 4] < 0.5) & views.flip]).astype(np.int32)


def draw_colours(views: ViewsSpec, rows: NDArray[np.int64]) -> Colours | None:
    """Changes of colour of some images in all views, or None; they depend on the image's row and the view alone.

    Args:
        views: how many, and how strong.
        rows: of the images in the data set, int64 [n].
    """
    if not views.colour and not views.grey:
        return None
    u = np.concatenate(
        [np.random.default_rng([view, 1]).random((int(rows.max()) + 1, 10))[rows] for view in range(views.n)]
    )
    spec = views.colour or ColourSpec(p=0)
    reach = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    still = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = np.maximum(still - reach, [0, 0, 0, -0.5]), still + reach
    amounts = np.where(u[:, :1] < spec.p, low + (high - low) * u[:, 1:5], still)
    return Colours(amounts, u[:, 5:9].argsort(1), u[:, 9] < views.grey)


def change_colours(x: Tensor, colours: Colours) -> Tensor:
    """Images float32 [B, C, H, W] in [0, 1], grey or RGB, with their colours changed; the same shape."""
    made = []
    for image, amounts, order, grey in zip(x, *(rows.tolist() for rows in colours), strict=True):
        for which in order:
            if amounts[which] != (which < 3):  # 1 changes nothing as a factor, 0 as a turn
                image = CHANGES[which](image, amounts[which])
        made.append(functional.rgb_to_grayscale(image, len(image)) if grey else image)
    return torch.stack(made)
