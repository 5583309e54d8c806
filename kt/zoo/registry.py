"""Which architectures exist, and what is known of them, read from source files: torch and timm are not imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kt.errors import KtError

_ENTRY_POINT = re.compile(r"^@(?:[\w.]+\.)?register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)

_KINDS = {
    "cnn": "byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet focalnet ghostnet "
    "hardcorenas hgnet hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 "
    "nasnet nfnet pnasnet rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet selecsls senet sknet "
    "starnet tresnet vgg vovnet xception xception_aligned",
    "transformer": "beit cait crossvit davit deepseek_vit deit eva gcvit gemma4_vit hiera hieradet_sam2 mvitv2 "
    "naflexvit pvt_v2 qwen3_vit swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt twins "
    "vision_transformer vision_transformer_relpos vision_transformer_sam volo xcit",
    "mlp": "mlp_mixer",
    "hybrid": "byoanet coat convit edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra "
    "fastvit levit maxxvit metaformer mobilenetv5 mobilevit nest nextvit pit shvit swiftformer tiny_vit "
    "vision_transformer_hybrid visformer vitamin",
}
_KIND = {module: kind for kind, modules in _KINDS.items() for module in modules.split()}


def _source(module: str) -> Path:
    """The source file of a module, found without running it (its parent packages are imported)."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # a parent package runs, and may raise anything
        raise KtError(f"zoo.modules: {module}: cannot be found ({error})") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise KtError(f"zoo.modules: {module}: no such Python module on this machine")
    return Path(spec.origin)


def entry_points(text: str) -> list[str]:
    """Names of the functions that a module's source text registers with ``@register_model``."""
    return _ENTRY_POINT.findall(text)


@lru_cache(maxsize=1)
def _timm() -> dict[str, str]:
    folder = _source("timm").parent / "models"
    return {name: path.stem for path in sorted(folder.glob("*.py")) for name in entry_points(path.read_text("utf-8"))}


def architectures(modules: Sequence[str] = ()) -> dict[str, str]:
    """Every architecture that ``timm.create_model`` knows, with the module that defines it.

    Args:
        modules: further Python modules that register models.

    Raises:
        KtError: a module cannot be found, or is not valid Python.
    """
    known = dict(_timm())
    for module in modules:
        path = _source(module)
        text = path.read_text("utf-8")
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise KtError(f"zoo.modules: {module}: line {error.lineno}: {error.msg}") from error
        known |= dict.fromkeys(entry_points(text), path.stem)
    return known


def kind_of(family: str) -> str | None:
    """`cnn`, `transformer`, `mlp` or `hybrid` for a timm module's name; None where this is not known."""
    return _KIND.get(family)
