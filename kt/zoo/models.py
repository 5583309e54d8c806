"""Zoo members as torch modules: build, load, save, and what can be measured without running data through them."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kt import store
from kt.errors import KtError, listed


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, which register their models with timm.

    Raises:
        KtError: a module fails to import.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything
            raise KtError(f"zoo.modules: {module}: fails to import ({type(error).__name__}: {error})") from error


def build(arch: str, args: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """An architecture with fresh weights, drawn from torch's global generator.

    Raises:
        KtError: timm refuses the arguments.
    """
    try:
        model: nn.Module = timm.create_model(arch, num_classes=classes, **{"in_chans": channels, **args})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise KtError(
            f"zoo: {arch} cannot be built with {args}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return model


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with store.atomic(path) as temporary:
        save_file(tensors, temporary)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load safetensors into a model, strictly.

    Raises:
        KtError: the file is missing, is not safetensors, or its keys or shapes are not the model's.
    """
    try:
        tensors = load_file(Path(path))
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise KtError(f"{path}: weights cannot be read ({error})") from error
    expected = model.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise KtError(
            f"{path}: not this model's weights: missing {listed(sorted(missing)) or 'none'}; "
            f"unexpected {listed(sorted(unexpected)) or 'none'}"
        )
    wrong = [n for n, tensor in tensors.items() if tensor.shape != expected[n].shape]
    if wrong:
        first = f"{wrong[0]} is {list(tensors[wrong[0]].shape)}, not {list(expected[wrong[0]].shape)}"
        raise KtError(f"{path}: {len(wrong)} tensors have another shape than the model's: {first}")
    model.load_state_dict(tensors)
    return model


def fingerprint(arch: str, args: dict[str, Any], spec: dict[str, Any], weights: str) -> str:
    """The hash that identifies a member: its architecture, its input and the hash of its weights file."""
    return store.digest({"arch": arch, "args": args, "input": spec, "weights": weights})


def macs(model: nn.Module, channels: int, size: int) -> int:
    """Multiply-accumulate operations of one image's forward pass (matrix products, convolutions and attention)."""
    probe = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe(torch.zeros(1, channels, size, size))
    return int(counter.get_total_flops()) // 2


def properties(model: nn.Module, channels: int, size: int) -> dict[str, int]:
    """``params``, ``macs`` and ``feature_width`` of a model, for the zoo table."""
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs(model, channels, size),
        "feature_width": int(getattr(model, "num_features", 0)),
    }
