"""Small architectures of the embedded studies and the presets, registered as any user's own model would be.

timm's own entry points for them fix sizes that do not fit images of a few pixels, so their classes are built directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers.mlp import GatedMlp
from timm.models import register_model
from timm.models.metaformer import MetaFormer, Pooling
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import Tensor, nn

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "num_blocks": 3, "embed_dim": 64}


@register_model
def tiny_poolformer(pretrained: bool = False, **kwargs: Any) -> MetaFormer:
    """PoolFormer with four stages of one block each (widths 16 to 128)."""
    return MetaFormer(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), token_mixers=Pooling, **_plain(kwargs))


@register_model
def tiny_mixer(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """MLP-Mixer for 16-pixel images: 4-pixel patches, three blocks of width 64."""
    return MlpMixer(**{**SMALL, **_plain(kwargs)})


@register_model
def tiny_resmlp(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """ResMLP for 16-pixel images: the same sizes, with affine layers instead of norms."""
    return MlpMixer(block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4, **{**SMALL, **_plain(kwargs)})


@register_model
def tiny_gmlp(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """GMLP for 16-pixel images: the same sizes, with spatial gating."""
    return MlpMixer(block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=4, **{**SMALL, **_plain(kwargs)})


class Dilated(nn.Module):
    """A class per pixel at half resolution: residual 3×3 convolutions that see ever farther, and no smaller map.

    Args:
        num_classes: logits of each pixel.
        in_chans: colour channels.
        width: channels of all layers.
        dilations: of the convolutions, one after the other.
    """

    def __init__(self, num_classes: int, in_chans: int, width: int = 40, dilations: Sequence[int] = (1, 2, 4, 8, 1)):
        super().__init__()
        self.num_features = width
        self.stem = _convolution(in_chans, width, stride=2)
        self.blocks = nn.ModuleList(_convolution(width, width, dilation=dilation) for dilation in dilations)
        self.head = nn.Conv2d(width, num_classes, 1)

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, H / 2, W / 2] of images [B, C, H, W]."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


@register_model
def tiny_dilated(pretrained: bool = False, **kwargs: Any) -> Dilated:
    """Dilated convolutions of width 40, for scenes of a few dozen pixels."""
    return Dilated(**_plain(kwargs))


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drop what ``timm.create_model`` adds for models with published weights."""
    return {key: value for key, value in kwargs.items() if not key.startswith(("pretrained_", "cache_dir"))}
