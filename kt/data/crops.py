"""Fixed random views: which part of an image each of its views shows, and how; the same for every model.

Source of the augmentation: Szegedy et al. 2015, section 6, with torchvision's scale and ratio. A crop that would reach
beyond the image is cut to it, where torchvision draws again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kt.data import colours
from kt.data.colours import Colours
from kt.data.spec import ViewsSpec

Boxes = NDArray[np.int32]
"""Top, left, height and width of the crop in pixels, and 1 where it is mirrored, [V · n, 5], view after view."""


class Drawn(NamedTuple):
    """What V · n views of n images show, view after view.

    Attributes:
        boxes: the crops; where ``centre`` is true, only whether they are mirrored counts.
        centre: the part that evaluation shows instead of the crops.
        colours: changes of colour, if any.
    """

    boxes: Boxes
    centre: bool = False
    colours: Colours | None = None

    def at(self, positions: NDArray[np.int64] | slice) -> Drawn:
        """Some of the views."""
        return Drawn(self.boxes[positions], self.centre, self.colours and self.colours.at(positions))


def draw(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int) -> Drawn:
    """All views of some images; what a view shows depends on its image's row and its number alone.

    Args:
        views: how many, how large, and how their colours change.
        rows: of the images in the data set, int64 [n].
        height: of the stored images, pixels.
        width: of the stored images, pixels.
    """
    boxes = np.concatenate([_boxes(views, rows, height, width, view) for view in range(views.n)])
    return Drawn(boxes, views.crop == "center", colours.draw(views, rows))


def _boxes(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int, view: int) -> Boxes:
    u = np.random.default_rng(view).random((int(rows.max()) + 1, 5))[rows]
    area = height * width * (views.scale[0] + (views.scale[1] - views.scale[0]) * u[:, 0])
    low, high = np.log(views.ratio)
    ratio = np.exp(low + (high - low) * u[:, 1])
    tall = np.clip(np.rint(np.sqrt(area / ratio)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area * ratio)), 1, width)
    top, left = np.floor(u[:, 2] * (height - tall + 1)), np.floor(u[:, 3] * (width - wide + 1))
    return np.column_stack([top, left, tall, wide, (u[:, 4] < 0.5) & views.flip]).astype(np.int32)
