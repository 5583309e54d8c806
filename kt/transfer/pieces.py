"""The forward pass of a batch that is cut into pieces, where the loss compares the batch's samples with each other.

All outputs must then be there before there is a gradient, but what the passes keep for it need not be: each piece's
pass is done once more in the backward pass. That takes about a third more time, and the memory of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def forward(learner: nn.Module, pieces: Sequence[Any]) -> Any:
    """What a learner gives for a batch, the outputs of its pieces joined; one piece is an ordinary forward pass.

    Args:
        learner: in train mode; its BatchNorm statistics follow every piece once.
        pieces: parts of a batch as the learner takes them, with one image or more each.
    """
    if len(pieces) == 1:
        return learner(pieces[0])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(learner)

    outputs = [checkpoint(learner, piece, use_reentrant=False, context_fn=contexts) for piece in pieces]
    return join(outputs, [_images(piece) for piece in pieces])


def join(outputs: Sequence[Any], images: Sequence[int]) -> Any:
    """Outputs for the pieces of a batch as one: tensors one after another, numbers as their mean over the images.

    Args:
        outputs: of every piece: a tensor with a row an image, a number that is a mean over images, a tuple or list of
            these, or anything else, which is taken to be the same for all pieces.
        images: how many every piece has.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if first.ndim:
            return torch.cat(list(outputs))
        return torch.stack(list(outputs)) @ (first.new_tensor(images) / sum(images))
    if isinstance(first, tuple | list):
        parts = [join(of_part, images) for of_part in zip(*outputs, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def _images(x: Any) -> int:
    """Number of images in what a learner takes."""
    return len(x) if isinstance(x, Tensor) else _images(x[0])


@contextmanager
def _statistics_kept(learner: nn.Module) -> Iterator[None]:
    """While this holds, BatchNorm's running statistics stay as they are, in train mode too; and so does their count."""
    layers = [module for module in learner.modules() if isinstance(module, _BatchNorm)]
    counts = [layer.num_batches_tracked for layer in layers]
    before = [(layer.momentum, None if n is None else n.clone()) for layer, n in zip(layers, counts, strict=True)]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, now, (momentum, count) in zip(layers, counts, before, strict=True):
            layer.momentum = momentum
            if now is not None and count is not None:  # None where a layer keeps no statistics
                now.copy_(count)
