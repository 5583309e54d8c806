"""Zoo members as torch modules: build them, and what can be measured without running data through them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kt import store
from kt.errors import KtError, listed
from kt.zoo.fit import Slot

OUTPUTS = (1009, 1013)
"""Numbers of outputs by which a head is told from the rest of an architecture: no other width is one of them."""


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
    except Exception as error:  # an architecture may raise anything
        if pretrained and not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
            raise
        raise KtError(
            f"zoo: {arch} cannot be built with {args}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return model


def fingerprint(arch: str, args: dict[str, Any], spec: dict[str, Any], weights: str) -> str:
    """The hash that identifies a member: its architecture, its input and the hash of its weights file."""
    return store.digest({"arch": arch, "args": args, "input": spec, "weights": weights})


def outline(build: Callable[[int], nn.Module]) -> dict[str, Slot]:
    """All tensors of an architecture, built without memory where that can be; torch's generator is left as it was.

    Args:
        build: makes the architecture with a number of outputs.

    Raises:
        KtError: as ``build`` does.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                first, second = (slots(build(outputs)) for outputs in OUTPUTS)
        except Exception:  # not every architecture can be built without memory, and it may raise anything
            first, second = (slots(build(outputs)) for outputs in OUTPUTS)
    for name, slot in first.items():
        other = second[name].shape if name in second else slot.shape
        shape = tuple(n if n == m else None for n, m in zip(slot.shape, other, strict=True))
        first[name] = dataclasses.replace(slot, shape=shape)
    return first


def slots(model: nn.Module) -> dict[str, Slot]:
    """All tensors of a model; those of tied weights name the first of them."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    found, first = dict[str, Slot](), dict[int, str]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            same = first.setdefault(id(tensor), name)
            found[name] = Slot(tuple(tensor.shape), name in buffers, _kind(tensor), same if same != name else None)
    return found


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulate operations of one image's forward pass (matrix products, convolutions and attention).

    Args:
        model: on any device, torch's meta device included; its mode is left as it was.
        shape: channels, height and width of the image.

    Raises:
        KtError: the model does not take such an image.
    """
    return run_once(model, shape)[0]


def run_once(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, Any]:
    """Multiply-accumulate operations of one image's forward pass, and what the model gives; as ``macs``."""
    training, device = model.training, next(iter(model.parameters()), torch.empty(0)).device
    image = torch.linspace(-1, 1, shape[0] * shape[1] * shape[2], device=device).reshape(1, *shape)
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            given = model(image)
    except Exception as error:  # an architecture may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise KtError(f"the model does not take an image of {list(shape)}: {type(error).__name__}: {text}") from error
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2, given


def check_training(model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Fail where a model gives something else than logits while it is trained; it is left as it was.

    Raises:
        KtError: with what it gives instead, or that it does not take two images.
    """
    training, kept = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.linspace(-1, 1, 2 * shape[0] * shape[1] * shape[2]).reshape(2, *shape)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = model(images)
    except Exception as error:  # an architecture may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise KtError(f"the model cannot be trained: {type(error).__name__}: {text}") from error
    finally:
        model.train(training)
        for name, buffer in model.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])
    if not isinstance(given, torch.Tensor) or given.shape != (2, classes):
        what = list(given.shape) if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
        raise KtError(
            f"in training the model gives {what} for two images; needed: one tensor of logits, [2, {classes}]"
        )


def check_outputs(given: Any, classes: int) -> None:
    """Fail where what a model gives for one image is not one finite number a class.

    Args:
        given: by the model's forward pass.
        classes: that it has to tell apart.

    Raises:
        KtError: with what it gives instead.
    """
    wanted = f"needed: one tensor of floating-point logits, [1, {classes}]"
    if not isinstance(given, torch.Tensor):
        inside = f" with {listed(map(str, given))}" if isinstance(given, Mapping) else ""
        count = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise KtError(f"the model gives a {type(given).__name__}{count}{inside}; {wanted}")
    if given.shape != (1, classes) or not given.is_floating_point():
        dtype = str(given.dtype).removeprefix("torch.")
        raise KtError(f"the model gives {list(given.shape)} of {dtype} for one image; {wanted}")
    if not given.isfinite().all():
        raise KtError("the model's logits of a plain image are not finite; its weights or its input are wrong")


def sizes(model: nn.Module) -> dict[str, int]:
    """``params`` and ``feature_width`` (of the features before the classifier; 0 where the model does not say)."""
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "feature_width": int(getattr(model, "head_hidden_size", 0) or getattr(model, "num_features", 0)),
    }
