"""Feature stages of a model, where features leave and enter it: maps of one common form, and penultimate features.

timm names in ``feature_info`` the modules whose outputs are a backbone's feature stages. Those outputs are maps, with
channels first or last, or tokens, with or without others in front that stand for no place in the image. All are read
as maps [B, C, H, W] here, and maps are written in the form of a stage. Stages that timm does not name, or of models
that are not timm's, are chosen by the name of their module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt.errors import KtError, listed, nearest, quoted
from kt.zoo.features import Featured

Grid = tuple[int, int]
"""Height and width of a map."""

Change = Callable[[Tensor], Tensor]
"""Change of a stage's tensor, in its own form, on its way through the model."""


@dataclass(frozen=True)
class Stage:
    """One feature stage of a model.

    Attributes:
        module: name of the module whose output it is.
        form: channels first [B, C, H, W] or last [B, H, W, C], tokens [B, P + H · W, C], or a vector [B, C].
        channels: C.
        grid: H and W.
        prefix: P, leading tokens without a place in the image; they are not read.
        item: index of the tensor in the module's output, where that is several.
        depth: share of the model's stages that end here, above 0 and at most 1.
    """

    module: str
    form: Literal["first", "last", "tokens", "vector"]
    channels: int
    grid: Grid
    prefix: int
    item: int | None
    depth: float

    def pick(self, output: Any) -> Tensor:
        """The stage's tensor in its module's output."""
        tensor: Tensor = output if self.item is None else output[self.item]
        return tensor

    def put(self, output: Any, tensor: Tensor) -> Any:
        """The module's output with another tensor in the stage's place."""
        if self.item is None:
            return tensor
        return type(output)(tensor if i == self.item else item for i, item in enumerate(output))

    def read(self, tensor: Tensor) -> Tensor:
        """The stage's tensor as a map, [B, C, H, W]."""
        if self.form == "first":
            return tensor
        if self.form == "last":
            return tensor.permute(0, 3, 1, 2)
        if self.form == "vector":
            return tensor[:, :, None, None]
        return tensor[:, self.prefix :].transpose(1, 2).reshape(len(tensor), -1, *self.grid)

    def write(self, image: Tensor) -> Tensor:
        """A map [B, C, H, W] in the stage's own form; tokens without a place hold its mean."""
        if self.form == "first":
            return image
        if self.form == "last":
            return image.permute(0, 2, 3, 1)
        if self.form == "vector":
            return image.flatten(1)
        tokens = image.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True).expand(-1, self.prefix, -1), tokens], 1)


def names(model: nn.Module) -> list[str]:
    """The modules that are the model's feature stages, as timm lists them; empty for models without such a list."""
    return list(_widths(model))


def find(model: nn.Module, image: Tensor, chosen: Sequence[int | str], at: str) -> list[Stage]:
    """The chosen stages of a model, in the order in which they are run.

    Args:
        model: on any device; its mode is left as it was.
        image: one image as the model sees it, [1, C, H, W].
        chosen: positions among the model's feature stages, negative ones from the end, or names of modules; all
            feature stages that can be read when empty.
        at: the place in the configuration that an error names.

    Raises:
        KtError: there is no such stage, or its output cannot be read as a map.
    """
    widths = _widths(model)
    known = list(widths)
    wanted = [_named(model, choice, known, at) for choice in chosen]
    for name in wanted:
        if wanted.count(name) > 1:
            raise KtError(f"{at}: the stage {name!r} is chosen twice")
    outputs = _outputs(model, image, wanted or known)
    found: dict[str, Stage] = {}
    for name, output in outputs.items():
        depth = (known.index(name) + 1) / len(known) if name in known else 0.0
        try:
            found[name] = _stage(model, name, output, widths.get(name), depth, tuple(image.shape[2:]))
        except ValueError as error:
            if wanted:
                raise KtError(f"{at}: the stage {name!r} of {type(model).__name__} {error}") from error
    for name in wanted:
        if name not in outputs:
            raise KtError(f"{at}: {type(model).__name__} never runs the module {name!r}, so it gives no features")
    if not found:
        text = "has no feature stage that can be read; name modules of it instead"
        raise KtError(f"{at}: {type(model).__name__} {text}: {listed(_modules(model))}")
    order = list(found.values())
    return [stage if stage.depth else replace(stage, depth=(i + 1) / len(order)) for i, stage in enumerate(order)]


def _widths(model: nn.Module) -> dict[str, int]:
    """Channels of the feature stages that timm lists, by the names of their modules, where these exist."""
    info: Any = getattr(model, "feature_info", None)
    entries = getattr(info, "info", info) or []
    modules = dict(model.named_modules())
    return {entry["module"]: entry["num_chs"] for entry in entries if entry.get("module") in modules}


def _named(model: nn.Module, choice: int | str, known: Sequence[str], at: str) -> str:
    if isinstance(choice, int):
        if not -len(known) <= choice < len(known):
            allowed = f"allowed: {-len(known)} to {len(known) - 1} ({listed(known)})"
            here = allowed if known else f"name modules of it: {listed(_modules(model))}"
            raise KtError(f"{at}: {type(model).__name__} has {len(known)} stages, but not {choice}; {here}")
        return known[choice]
    modules = _modules(model)
    if choice not in modules:
        stages = f"its stages: {listed(known)}" if known else f"it lists no stages; its modules: {listed(modules)}"
        inside = [name for name in modules if choice and name.endswith(f".{choice}")][:3]
        near = f"; did you mean {' or '.join(map(quoted, inside))}?" if inside else nearest(choice, modules)
        raise KtError(f"{at}: {type(model).__name__} has no module {choice!r}; {stages}{near}")
    return choice


def _modules(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _outputs(model: nn.Module, image: Tensor, wanted: Sequence[str]) -> dict[str, Any]:
    """Outputs of the wanted modules for an image, in the order in which they are run."""
    found: dict[str, Any] = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), watching(model, {name: _keeper(found, name) for name in wanted}):
            model(image)
    finally:
        model.train(training)
    return found


def _keeper(found: dict[str, Any], name: str) -> Callable[[Any], Any]:
    def keep(output: Any) -> Any:
        found[name] = output
        return output

    return keep


def _stage(model: nn.Module, name: str, output: Any, width: int | None, depth: float, image: tuple[int, ...]) -> Stage:
    """The stage that a module's output is; raises ``ValueError`` with the reason where it cannot be read as a map."""
    item = None
    if isinstance(output, tuple | list):
        fitting = [i for i, part in enumerate(output) if isinstance(part, Tensor) and part.ndim >= 2]
        item = next((i for i in fitting if width in output[i].shape[1:]), next(iter(fitting), None))
        output = None if item is None else output[item]
    if not isinstance(output, Tensor):
        raise ValueError("gives no tensor")
    shape = list(output.shape)
    if output.ndim == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        if width is not None and (shape[1] == width) != (shape[3] == width):
            last = shape[3] == width
        height, breadth = shape[1:3] if last else shape[2:]
        return Stage(name, "last" if last else "first", shape[3 if last else 1], (height, breadth), 0, item, depth)
    if output.ndim == 3:
        for prefix in (int(getattr(model, "num_prefix_tokens", 0) or 0), 0):
            if grid := _grid(shape[1] - prefix, image):
                return Stage(name, "tokens", shape[2], grid, prefix, item, depth)
        raise ValueError(f"gives {shape[1]} tokens, which are no grid of places in the image")
    if output.ndim == 2:
        return Stage(name, "vector", shape[1], (1, 1), 0, item, depth)
    raise ValueError(f"gives a tensor of shape {shape}, neither maps nor tokens nor vectors")


def _grid(places: int, image: tuple[int, ...]) -> Grid | None:
    """Height and width of a grid of so many square patches of an image; None where they make none."""
    height, width = (round(math.sqrt(max(0, places) * side / other)) for side, other in (image, image[::-1]))
    return (height, width) if 0 < height * width == places else None


@contextmanager
def watching(model: nn.Module, changes: Mapping[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Pass the outputs of the named modules through the functions, while this holds."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, change=change: change(output))
        for name, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def changing(model: nn.Module, changes: Mapping[Stage, Change]) -> AbstractContextManager[None]:
    """Change the tensors of some stages on their way through the model, while this holds."""

    def changer(stage: Stage, change: Change) -> Callable[[Any], Any]:
        return lambda output: stage.put(output, change(stage.pick(output)))

    return watching(model, {stage.module: changer(stage, change) for stage, change in changes.items()})


def features(model: nn.Module, x: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """Maps [B, C, H, W] of some stages of a model for a batch, without gradient."""
    found: dict[str, Tensor] = {}

    def keeper(stage: Stage) -> Callable[[Any], Any]:
        def keep(output: Any) -> Any:
            found[stage.module] = stage.read(stage.pick(output)).clone()  # later layers may write into it
            return output

        return keep

    with torch.no_grad(), watching(model, {stage.module: keeper(stage) for stage in stages}):
        model(x)
    return [found[stage.module] for stage in stages]


class Staged(nn.Module):
    """A classifier that also gives feature maps; tokens become maps, without class and other extra tokens.

    Args:
        model: a timm model.
        stages: of the model, counted from 0, in increasing order; all where None.
    """

    def __init__(self, model: nn.Module, stages: list[int] | None) -> None:
        super().__init__()
        self.model, self.stages = model, stages

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, K], and a map [B, C, H, W] per stage."""
        timm_model: Any = self.model
        final, maps = timm_model.forward_intermediates(x, indices=self.stages, output_fmt="NCHW")
        return timm_model.forward_head(final), maps


class Pooled(Featured):
    """A classifier that also gives its penultimate features, as the only one of its stages."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        """Logits [B, K], and a list of the features [B, D]."""
        logits, features = super().forward(x)
        return logits, [features]


def with_features(model: nn.Module, variant: str, stages: Sequence[int], shape: tuple[int, ...]) -> nn.Module:
    """The model as one that gives logits and features.

    Args:
        model: a timm model.
        variant: `map` or `vector`.
        stages: of a map; the order does not matter.
        shape: channels, height and width of its images.

    Raises:
        KtError: the model has no feature stages, or not these, or no maps there.
    """
    name = type(model).__name__
    if variant == "vector":
        return Pooled(model)
    if not hasattr(model, "forward_intermediates"):
        raise KtError(f"{name} has no feature stages (timm's forward_intermediates); `variant: vector` needs none")
    count = len(features_of(Staged(model, None), shape))
    if wrong := [stage for stage in stages if not -count <= stage < count]:
        raise KtError(f"{name} has no feature stage {wrong[0]}; allowed: 0 to {count - 1}, or −{count} to −1")
    chosen = sorted({stage % count for stage in stages})
    if len(chosen) < len(stages):
        raise KtError(f"{name} has {count} feature stages; {list(stages)} names one of them twice")
    staged = Staged(model, chosen)
    if flat := [shape for shape in features_of(staged, shape) if len(shape) != 3]:
        raise KtError(f"{name} gives features of shape {list(flat[0])}, no map; `variant: vector` takes any")
    return staged


def features_of(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a model's features of one image, stage by stage; the model's mode and statistics are left."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        found = model(torch.zeros(1, *shape, device=device))[1]
    model.train(training)
    return [tuple(features.shape[1:]) for features in found]


def common_grids(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[Grid]:
    """For each stage the height and width on which the networks meet: the smallest of theirs; (1, 1) for vectors.

    Args:
        shapes: of each network's features, stage by stage: (C, H, W), or (C,).
    """
    sides = [[(*shape, 1, 1)[1:3] for shape in of_stage] for of_stage in zip(*shapes, strict=True)]
    return [(min(height for height, _ in of_stage), min(width for _, width in of_stage)) for of_stage in sides]


def meet(features: Tensor, grid: Grid) -> Tensor:
    """A map [B, C, H, W] averaged to a grid that is no larger, [B, C, h, w]; vectors [B, C] stay as they are."""
    return features if features.ndim == 2 or features.shape[2:] == grid else F.adaptive_avg_pool2d(features, grid)
