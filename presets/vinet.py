"""Published networks for video saliency as models of the zoo, from clones of their repositories.

`zoo.modules: [vinet]` registers the architecture `published_video` from the folder of the configuration. Its arguments:

- `code`: folder of the file that defines the network, with all that it imports beside it;
- `network`: file and class, as `ViNet_S_model.VideoSaliencyModel`;
- `options`: keyword arguments of the class;
- `namespace`: for classes that take one object of options instead, as `ViNet_A` does.

`checkpoint` of the member is the published file: tensors keep their names. What the network gives must be a map ≥ 0,
[B, H, W], or [B, 1, H, W].
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timm.models import register_model
from torch import Tensor, nn


@register_model
def published_video(
    pretrained: bool = False,
    code: str = "",
    network: str = "",
    options: dict[str, Any] | None = None,
    namespace: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A network of a clone, built with its own options; see the top of this file."""
    published = load(Path(code), network)
    adapted = type(published.__name__, (Adapted, published), {"__module__": __name__})
    given = [] if namespace is None else [SimpleNamespace(**namespace)]
    made: nn.Module = adapted(*given, **(options or {}))
    return made


class Adapted:
    """What a published network lacks: it takes any clip, contiguous or not, and gives one map per clip."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, H, W] of clips [B, C, T, H, W]."""
        found: Tensor = super().forward(x.contiguous())  # type: ignore[misc]
        return found[:, 0] if found.ndim == 4 and found.shape[1] == 1 else found


def load(code: Path, network: str) -> type[nn.Module]:
    """The class of a network from the folder of its code.

    Files of different repositories have equal names. So those that this one imports are forgotten again.

    Raises:
        ImportError: there is no such file or class.
    """
    file, _, name = network.rpartition(".")
    if not file or not (code / f"{file.replace('.', '/')}.py").is_file():
        raise ImportError(f"network: no file for {network!r} in {str(code)!r}; needed: FILE.CLASS, without .py")
    before = dict(sys.modules)
    beside = {path.stem for path in code.iterdir()}
    for module in beside & before.keys():  # of another repository
        del sys.modules[module]
    sys.path.insert(0, str(code))
    try:
        found: Any = importlib.import_module(file)
    finally:
        sys.path.remove(str(code))
        for module in beside & sys.modules.keys():
            del sys.modules[module]
        sys.modules.update({module: before[module] for module in beside & before.keys()})
    if not isinstance(made := getattr(found, name, None), type) or not issubclass(made, nn.Module):
        raise ImportError(f"network: {file}.py in {str(code)!r} has no network {name!r}")
    return made
