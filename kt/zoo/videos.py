"""Small networks of the embedded study of saliency: from clips [B, C, T, H, W] to maps ≥ 0, [B, H / 2, W / 2].

They take clips of any length and size. A map is made from the features of the last frame, which is the target where a
clip reaches back, and from their mean over all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F


class VideoNet(nn.Module):
    """A stem that halves height and width, residual blocks in space and time, and a map from their features.

    Args:
        in_chans: colour channels.
        width: channels of all layers.
        blocks: between stem and map, each [B, width, T, H / 2, W / 2] to the same.
    """

    def __init__(self, in_chans: int, width: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_features = 2 * width
        self.stem = _convolution(in_chans, width, (1, 5, 5), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(2 * width, 1, 1)

    def get_classifier(self) -> nn.Module:
        """The layer that gives the map."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, H / 2, W / 2] of clips [B, C, T, H, W]."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return F.softplus(self.head(torch.cat([x[:, :, -1], x.mean(2)], 1))[:, 0])


def _convolution(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1), dilation: int = 1
) -> nn.Module:
    """A convolution over time, height and width, dilated in space, with BatchNorm."""
    time, height, width = (side // 2 for side in kernel)
    padding = (time, height * dilation, width * dilation)
    layer = nn.Conv3d(inputs, outputs, kernel, stride, padding, (1, dilation, dilation), bias=False)
    return nn.Sequential(layer, nn.BatchNorm3d(outputs), nn.ReLU())


class Difference(nn.Module):
    """Features of each frame less those of the one before, and of the first; then a convolution in space.

    Args:
        width: channels.
        dilation: of the convolution.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layer = _convolution(3 * width, width, (1, 3, 3), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, width, T, H, W] of such."""
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
        moved: Tensor = self.layer(torch.cat([x, (x - before).abs(), (x - x[:, :, :1]).abs()], 1))
        return moved


@register_model
def tiny_video_conv(pretrained: bool = False, in_chans: int = 3, width: int = 16, **kwargs: Any) -> VideoNet:
    """Convolutions over space and time at once, as in C3D."""
    return VideoNet(in_chans, width, [_convolution(width, width, (3, 3, 3), dilation=d) for d in (1, 2, 4)])


@register_model
def tiny_video_separable(pretrained: bool = False, in_chans: int = 3, width: int = 16, **kwargs: Any) -> VideoNet:
    """Convolutions over space and over time in turn, as in S3D."""
    pairs = [
        nn.Sequential(_convolution(width, width, (1, 3, 3), dilation=d), _convolution(width, width, (3, 1, 1)))
        for d in (1, 2, 4)
    ]
    return VideoNet(in_chans, width, pairs)


@register_model
def tiny_video_difference(pretrained: bool = False, in_chans: int = 3, width: int = 16, **kwargs: Any) -> VideoNet:
    """Differences between features of frames, and convolutions over space."""
    return VideoNet(in_chans, width, [Difference(width, d) for d in (1, 2, 4)])
