"""Weights of zoo members: from the hub, from checkpoint files of the usual forms, and to safetensors. Never pickles."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kt import store
from kt.errors import KtError, listed
from kt.zoo import models
from kt.zoo.check import PREFIXES

Tensors = dict[str, Tensor]

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts keep a model's tensors, the averaged ones first, as timm takes them."""


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers as safetensors, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with store.atomic(path) as temporary:
        save_file(tensors, temporary)


def read(path: str | os.PathLike[str], device: str = "cpu") -> Tensors:
    """Tensors by name from a .safetensors file or one that ``torch.save`` wrote, unwrapped from ``WRAPPERS``.

    On the device ``meta`` the tensors of a file that ``torch.save`` wrote have shapes, but no content.

    Raises:
        KtError: the file is missing or damaged, or holds something else than weights: such a file is never run.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(Path(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings beside the weights
            found = torch.load(path, map_location=device, weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise KtError(f"{path}: weights cannot be read ({reason[0]})") from error
    while isinstance(found, Mapping) and (key := next((k for k in WRAPPERS if _is_mapping(found.get(k))), None)):
        found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise KtError(f"{path}: not weights: it holds {_content(found)}, not tensors by name")
    return dict(found)


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a checkpoint file into a model, strictly; prefixes that its names do not share are taken off.

    Raises:
        KtError: the file cannot be read, or its keys or shapes are not the model's.
    """
    return fit(model, read(path), str(path))


def fit(model: nn.Module, tensors: Tensors, origin: str) -> nn.Module:
    """Give a model its tensors, strictly; ``origin`` begins the message of an error. The model is whole or unchanged.

    Raises:
        KtError: keys or shapes are not the model's.
    """
    expected = model.state_dict()
    tensors = unprefixed(tensors, expected)
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise KtError(
            f"{origin}: not this model's weights: missing {listed(sorted(missing)) or 'none'}; "
            f"unexpected {listed(sorted(unexpected)) or 'none'}"
        )
    wrong = [n for n, tensor in tensors.items() if tensor.shape != expected[n].shape]
    if wrong:
        first = f"{wrong[0]} is {list(tensors[wrong[0]].shape)}, not {list(expected[wrong[0]].shape)}"
        raise KtError(f"{origin}: {len(wrong)} tensors have another shape than the model's: {first}")
    model.load_state_dict(tensors)
    return model


def unprefixed(tensors: Tensors, expected: Iterable[str]) -> Tensors:
    """``tensors`` without the prefixes that all of its names share and the expected names do not."""
    names = set(expected)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        if all(name.startswith(prefix) for name in names):
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The layers that turn features into logits, as timm's models name them; distilled models have two."""
    ask = getattr(model, "get_classifier", None)
    found = ask() if ask else None
    return [head for head in (found if isinstance(found, tuple | list) else [found]) if isinstance(head, nn.Module)]


def classes_of(model: nn.Module, tensors: Tensors) -> int | None:
    """Outputs of the classifier in a checkpoint of the model's architecture; None where it is not found."""
    names = [name for name, module in model.named_modules() if any(module is head for head in classifiers(model))]
    found = unprefixed(tensors, model.state_dict())
    shapes = [found[key].shape[0] for name in names for key in (f"{name}.weight", f"{name}.bias") if key in found]
    return shapes[0] if shapes else None


def check_head(build: Callable[[int], nn.Module], path: str, classes: int) -> None:
    """Fail where a checkpoint's head has another class count than the data; its architecture is built without memory.

    Raises:
        KtError: as above, or the file cannot be read.
    """
    tensors = read(path, "meta")
    try:
        with torch.device("meta"):
            has = classes_of(build(classes), tensors)
    except Exception:  # an architecture may raise anything while it is built so; loading it will tell
        return
    if has not in (None, classes):
        raise KtError(f"{path}: {other_head(has, classes)}")


def given(build: Callable[[int], nn.Module], path: str, classes: int, new_head: bool) -> nn.Module:
    """A model with a checkpoint's weights and ``classes`` outputs.

    Args:
        build: makes the architecture with a number of outputs.
        path: of the checkpoint.
        classes: of the data.
        new_head: whether a head of another class count may be replaced by a fresh one.

    Raises:
        KtError: the file cannot be read or is another architecture's, or its head has another class count.
    """
    tensors, model = read(path), build(classes)
    has = classes_of(model, tensors)
    if has in (None, classes):
        return fit(model, tensors, path)
    if not new_head:
        raise KtError(f"{path}: {other_head(has, classes)}")
    return with_new_head(fit(build(has), tensors, path), classes)


def other_head(has: int | None, classes: int) -> str:
    """What is wrong with a head of another class count, and what helps."""
    return f"its head has {has} classes, the data {classes}; give `finetune` for a new head, or leave the model out"


def with_new_head(model: nn.Module, classes: int) -> nn.Module:
    """The model with a fresh classifier.

    Raises:
        KtError: the model has no ``reset_classifier``, as timm's models do.
    """
    reset = getattr(model, "reset_classifier", None)
    if reset is None:
        raise KtError(f"{type(model).__name__} has no method reset_classifier(classes), so it cannot get a new head")
    reset(classes)
    return model


def pretrained(tag: str, args: Mapping[str, Any], channels: int, classes: int) -> nn.Module:
    """A timm model with its published weights, from the Hugging Face cache or the hub.

    timm replaces a head of another class count by a random one without a word; here ``classes`` is the head's own
    count (``kt.zoo.registry``), so that loading is strict.

    Raises:
        KtError: the weights are neither in the cache nor within reach, or timm refuses the arguments.
    """
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return models.build(tag, dict(args), classes, channels, pretrained=True)
    except GatedRepoError as error:
        raise KtError(
            f"{tag}: its authors ask to accept a licence on the hub first; then log in: hf auth login"
        ) from error
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        where = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
        raise KtError(
            f"{tag}: its weights are not in {where} and the hub cannot be reached from here"
            f"{' (HF_HUB_OFFLINE is set)' if os.environ.get('HF_HUB_OFFLINE') else ''}; "
            f"where there is a network: hf download {_repository(tag)}"
        ) from error
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KtError(f"{tag}: its weights cannot be loaded ({reason})") from error


def _repository(tag: str) -> str:
    known = timm.models.get_pretrained_cfg(tag)
    return (known.hf_hub_id if known else None) or f"timm/{tag}"


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _content(value: object) -> str:
    if isinstance(value, Mapping):
        return f"the keys {listed(sorted(map(str, value)))}" if value else "nothing"
    return f"a {type(value).__name__}"
