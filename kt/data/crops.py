"""Fixed random crops: which part of an image each of its views shows; the same for every model.

Source of the augmentation: Szegedy et al. 2015, section 6, with torchvision's scale and ratio. A crop that would reach
beyond the image is cut to it, where torchvision draws again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kt.data.spec import ViewsSpec

Boxes = NDArray[np.int32]
"""Top, left, height and width of the crop in pixels, and 1 where it is mirrored, [V · n, 5], view after view."""


def draw(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int) -> Boxes:
    """The crops of some images, in all views; an image's crop depends on its row and the view alone.

    Args:
        views: how many, and how large.
        rows: of the images in the data set, int64 [n].
        height: of the stored images, pixels.
        width: of the stored images, pixels.
    """
    return np.concatenate([_draw(views, rows, height, width, view) for view in range(views.n)])


def _draw(views: ViewsSpec, rows: NDArray[np.int64], height: int, width: int, view: int) -> Boxes:
    u = np.random.default_rng(view).random((int(rows.max()) + 1, 5))[rows]
    area = height * width * (views.scale[0] + (views.scale[1] - views.scale[0]) * u[:, 0])
    low, high = np.log(views.ratio)
    ratio = np.exp(low + (high - low) * u[:, 1])
    tall = np.clip(np.rint(np.sqrt(area / ratio)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area * ratio)), 1, width)
    top, left = np.floor(u[:, 2] * (height - tall + 1)), np.floor(u[:, 3] * (width - wide + 1))
    return np.column_stack([top, left, tall, wide, (u[:, 4] < 0.5) & views.flip]).astype(np.int32)
