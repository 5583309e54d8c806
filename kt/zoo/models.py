"""Zoo members as torch modules: build them, and what can be measured without running data through them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kt import store
from kt.errors import KtError


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, which register their models with timm.

    Raises:
        KtError: a module fails to import.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            raise KtError(f"zoo.modules: {module}: fails to import ({type(error).__name__}: {error})") from error


def build(arch: str, args: dict[str, Any], classes: int, channels: int, pretrained: bool = False) -> nn.Module:
    """An architecture with fresh weights, drawn from torch's global generator, or with those that timm publishes.

    Raises:
        KtError: timm refuses the arguments.
    """
    given = {"in_chans": channels, **args}
    try:
        model: nn.Module = timm.create_model(arch, pretrained=pretrained, num_classes=classes, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise KtError(
            f"zoo: {arch} cannot be built with {args}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return model


def fingerprint(arch: str, args: dict[str, Any], spec: dict[str, Any], weights: str) -> str:
    """The hash that identifies a member: its architecture, its input and the hash of its weights file."""
    return store.digest({"arch": arch, "args": args, "input": spec, "weights": weights})


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulate operations of one image's forward pass (matrix products, convolutions and attention).

    Args:
        model: on any device, torch's meta device included; its mode is left as it was.
        shape: channels, height and width of the image.

    Raises:
        KtError: the model does not take such an image.
    """
    training, device = model.training, next(iter(model.parameters()), torch.empty(0)).device
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *shape, device=device))
    except Exception as error:  # an architecture may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise KtError(f"the model does not take an image of {list(shape)}: {type(error).__name__}: {text}") from error
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


def sizes(model: nn.Module) -> dict[str, int]:
    """``params`` and ``feature_width`` (of the features before the classifier; 0 where the model does not say)."""
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "feature_width": int(getattr(model, "head_hidden_size", 0) or getattr(model, "num_features", 0)),
    }
