"""Mask2Former of the library `transformers` as a model for segmentation; `pip install transformers` first.

`zoo.modules: [mask2former]` registers it from the folder of the configuration. `args.config` is the folder of a
published checkpoint (of `facebook/mask2former-swin-tiny-ade-semantic`, say), which holds its `config.json`, and
`checkpoint` its `model.safetensors`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn


@register_model
def mask2former(pretrained: bool = False, num_classes: int = 150, config: str = "", **kwargs: Any) -> nn.Module:
    """Mask2Former as the `config.json` in a folder describes it; its number of classes is that of the data set."""
    from transformers import AutoConfig

    return _network()(AutoConfig.from_pretrained(Path(config), num_labels=num_classes))


@cache
def _network() -> Any:
    from transformers import Mask2FormerForUniversalSegmentation

    class Mask2Former(Mask2FormerForUniversalSegmentation):
        """Logits of each pixel from those of the queries; tensors have the names of the published checkpoints."""

        def forward(self, x: Tensor) -> Tensor:
            """log(u + ε), normalised over the classes, [B, C, h, w]: u_c = Σ_q softmax(class)_qc · sigmoid(mask_q)."""
            found = super().forward(pixel_values=x)
            classes = found.class_queries_logits.float().softmax(-1)[..., :-1]  # the last one is that of no object
            masks = found.masks_queries_logits.float().sigmoid()
            return torch.einsum("bqc,bqhw->bchw", classes, masks).add(1e-6).log().log_softmax(1)

        def get_classifier(self) -> nn.Module:
            """The layer that gives the classes of the queries."""
            return self.class_predictor

    return Mask2Former
