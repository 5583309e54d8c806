"""Small architectures of the default study and the presets, registered as any user's own model would be.

timm's own entry points for them fix sizes that do not fit images of a few pixels, so their classes are built directly.
"""

from __future__ import annotations

from typing import Any

from timm.layers.mlp import GatedMlp
from timm.models import register_model
from timm.models.metaformer import MetaFormer, Pooling
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock

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


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drop what ``timm.create_model`` adds for models with published weights."""
    return {key: value for key, value in kwargs.items() if not key.startswith(("pretrained_", "cache_dir"))}
