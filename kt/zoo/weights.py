"""Weights of zoo members: from the hub, from checkpoint files of the usual forms, and to safetensors. Never pickles."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kt import store
from kt.errors import KtError, listed
from kt.zoo import header, models, pickled
from kt.zoo.fit import COMPUTED, Fit, Outline, check_head, fit
from kt.zoo.header import Header
from kt.zoo.pickled import Entry

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's parameters and buffers as safetensors, atomically; tied ones under each of their names."""
    tensors, kept = Tensors(), set[int]()
    for name, tensor in model.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        tensors[name] = plain.clone() if memory in kept else plain  # safetensors refuses memory that is shared
        kept.add(memory)
    with store.atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary)
        temporary.chmod(mode)  # safetensors makes files that nobody else may read


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a checkpoint file into a model of the same number of outputs; the model is whole or unchanged.

    Raises:
        KtError: the file cannot be read, or its keys or shapes are not the model's.
    """
    found = header.read("weights", Path(path))
    try:
        return _fill(model, found, fit(found, models.slots(model)))
    except KtError as error:
        raise KtError(f"{path}: {error}") from error


def given(at: str, build: Callable[[int], nn.Module], path: str, outputs: int, new_head: bool) -> nn.Module:
    """A model with a checkpoint's weights and so many outputs; the log names what of the file is not loaded.

    Args:
        at: the key that names the checkpoint, for errors.
        build: makes the architecture with a number of outputs.
        path: of the checkpoint.
        outputs: that are needed.
        new_head: whether a head that is missing, or of another number of outputs, may be replaced by a fresh one.

    Raises:
        KtError: the file cannot be read or is another architecture's, or its head has another number of outputs.
    """
    found, outline = header.read(at, Path(path)), models.outline(build)
    try:
        fitted = fit(found, outline, new_head)
        check_head(fitted.outputs, outputs, new_head)
        model = _fill(build(outputs), found, _without_head(fitted, outline, outputs))
    except KtError as error:
        raise KtError(f"{at}: {path}: {error}") from error
    _report(path, fitted)
    return model


def _without_head(fitted: Fit, outline: Outline, outputs: int) -> Fit:
    if fitted.outputs in (None, outputs):
        return fitted
    entries = {name: entry for name, entry in fitted.entries.items() if None not in outline[name].shape}
    return dataclasses.replace(fitted, entries=entries)


def _fill(model: nn.Module, found: Header, fitted: Fit) -> nn.Module:
    """Give a model its tensors; what the file lacks, and may lack, keeps the model's own values."""
    tensors = _read(found, fitted)
    own = model.state_dict()
    if odd := [n for n, t in tensors.items() if n.rpartition(".")[2] not in COMPUTED and not t.isfinite().all()]:
        raise KtError(f"{len(odd)} tensors hold numbers that are not finite: {listed(odd)}")
    for name, slot in models.slots(model).items():
        if slot.same in tensors and name in tensors and not torch.equal(tensors[slot.same], tensors[name]):
            raise KtError(f"{name} and {slot.same} are one tensor of the model, but differ in the file")
    model.load_state_dict({**own, **tensors})
    return model


def _read(found: Header, fitted: Fit) -> Tensors:
    """The tensors of a fit by the model's names.

    Raises:
        KtError: the file is damaged.
    """
    try:
        if found.places is None:
            with safe_open(found.path, framework="pt") as file:
                return {name: file.get_tensor(entry.key) for name, entry in fitted.entries.items()}
        keys = list(dict.fromkeys(entry.key for entry in fitted.entries.values()))
        parts = dict(zip(keys, pickled.storages(found.path, found.places, keys), strict=True))
        return {name: _view(parts[entry.key], entry) for name, entry in fitted.entries.items()}
    except Exception as error:  # a damaged file can fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise KtError(f"weights cannot be read ({reason})") from error


def _view(content: bytearray, entry: Entry) -> Tensor:
    if not content:
        return torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
    flat = torch.frombuffer(content, dtype=getattr(torch, entry.dtype))
    return flat.as_strided(entry.shape, entry.stride or (), entry.offset)


def _report(path: str, fitted: Fit) -> None:
    """Log what of a file is loaded, where that is not all of it unchanged."""
    halves = sorted({entry.dtype for entry in fitted.entries.values()} & {"float16", "bfloat16", "float64"})
    if fitted.place or halves:
        kept = f"; {' and '.join(halves)} become float32" if halves else ""
        log.info("weights: %s: loaded from %s%s", path, fitted.place or "it", kept)
    for what, names in (("left out", fitted.left), ("other weights, not loaded", fitted.others)):
        if names:
            log.warning("weights: %s: %s: %s", path, what, listed(names))


def with_new_head(model: nn.Module, outputs: int) -> nn.Module:
    """The model with a fresh classifier.

    Raises:
        KtError: the model has no ``reset_classifier``, as timm's models do.
    """
    reset = getattr(model, "reset_classifier", None)
    if reset is None:
        raise KtError(f"{type(model).__name__} has no method reset_classifier(outputs), so it cannot get a new head")
    reset(outputs)
    return model


def pretrained(arch: str, args: Mapping[str, Any], channels: int, outputs: int, tag: str | None = None) -> nn.Module:
    """A timm model with its published weights, from the Hugging Face cache or the hub.

    timm silently replaces a head of another number of outputs by a random one; here ``outputs`` is that of the head
    (``kt.zoo.registry``), so that loading is strict.

    Args:
        arch: the model with its tag, or one whose encoder alone has published weights.
        args: of the architecture.
        channels: colour channels of the images.
        outputs: of the model.
        tag: of the published weights; by default ``arch``.

    Raises:
        KtError: the weights are neither in the cache nor within reach, or timm refuses the arguments.
    """
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    tag = tag or arch
    try:
        return models.build(arch, dict(args), outputs, channels, pretrained=True)
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
