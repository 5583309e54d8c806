"""What is known of a model beyond its weights: kind and year of its architecture, training data and recipe of its tag.

Kinds and years lie in ``families.csv``: the first row whose family and glob fit the architecture. The year is that of
the first paper on the architecture. Everything else is read from the words of timm's pretrained tag; a word that is
not in the tables below says nothing, and what no word says is unknown.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

FAMILIES = Path(__file__).with_name("families.csv")

LABELLED = ("in1k", "in12k", "in21k", "in22k", "inw21k")
"""ImageNet and its supersets, which have class labels."""

DATA = (
    *LABELLED,
    *("laion2b", "laion400m", "datacomp1b", "datacompxl", "dfn2b", "dfn5b", "dfndr2b", "merged2b", "webli"),
    *("cc12m", "yfcc15m", "yfcc100m", "ig1b", "jft", "lvd142m", "lvd1689m", "sat493m", "m30m", "m38m", "sa1b"),
)

RECIPES = {
    "self-supervised": "mae fcmae mim dino dinov3 ijepa seer",
    "language-supervised": "clip openai laion2b laion400m datacomp1b datacompxl dfn2b dfn5b dfndr2b merged2b webli "
    "metaclip metaclip2 mclip mclip2 tinyclip cc12m yfcc15m",
    "weakly-supervised": "wsl swag",
    "semi-weakly-supervised": "swsl",
    "semi-supervised": "ssl ns",
    "distilled": "dist distilled ssld",
    "adversarial": "ap adv",
    "sharpness-aware": "sam",
    "soup": "soup",
    "augment=augreg": "augreg augreg2",
    "augment=autoaugment": "aa",
    "augment=randaugment": "ra ra2 ra3 ra4",
    "augment=augmix": "am",
    "recipe=rsb-a1": "a1",
    "recipe=rsb-a2": "a2",
    "recipe=rsb-a3": "a3",
}
_RECIPE = {word: name for name, words in RECIPES.items() for word in words.split()}
OTHER_SIGNALS = (
    *("self-supervised", "language-supervised", "weakly-supervised", "semi-weakly-supervised", "semi-supervised"),
    "distilled",
)
"""Recipes whose first training had more or other signals than the labels of the data set that the tag names."""

ARCHITECTURES = {
    **dict.fromkeys(("beit", "beitv2", "beit3", "dinov2", "dinov3", "eva", "eva02"), "self-supervised"),
    **dict.fromkeys(("clip", "siglip"), "language-supervised"),
    "distilled": "distilled",
}
"""Words of an architecture's name that say how all of its weights were trained, where the tags do not."""


@dataclass(frozen=True)
class Training:
    """How a tag's weights came about, as far as its words say.

    Attributes:
        pretraining: data sets of the first training, joined by `+`.
        finetuning: data sets of the fine-tuning, in order, joined by `+`.
        recipe: tags such as `self-supervised`, `distilled` or `augment=augreg`.
    """

    pretraining: str | None
    finetuning: str | None
    recipe: tuple[str, ...]


def training(name: str) -> Training:
    """The training of a pretrained model named ``architecture.tag``.

    >>> training("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    Training(pretraining='in21k', finetuning='in1k', recipe=('supervised', 'augment=augreg', 'finetuned'))
    """
    arch, _, tag = name.partition(".")
    words = tag.split("_")
    cut = next((i for i, word in enumerate(words) if word in ("ft", "lc")), len(words))  # fine-tuned, linear classifier
    before, after = ([word for word in part if word in DATA] for part in (words[:cut], words[cut:]))
    of_arch = [recipe for word, recipe in ARCHITECTURES.items() if word in arch.split("_")]
    recipe = list(dict.fromkeys(of_arch + [_RECIPE[word] for word in words if word in _RECIPE]))
    if before and before[0] in LABELLED and not set(recipe) & set(OTHER_SIGNALS):
        recipe.insert(0, "supervised")
    if cut < len(words):
        recipe.append("finetuned")
    return Training("+".join(before) or None, "+".join(after) or None, tuple(recipe))


def kind_of(arch: str, family: str) -> str | None:
    """`cnn`, `transformer`, `mlp` or `hybrid` (convolutions with another mixing of places); None where not known."""
    return _row(arch, family).get("kind") or None


def year_of(arch: str, family: str) -> int | None:
    """Year of the first paper on an architecture, or None where not known."""
    year = _row(arch, family).get("year")
    return int(year) if year else None


def _row(arch: str, family: str) -> dict[str, str]:
    return next((row for row in _families().get(family, []) if fnmatchcase(arch, row["arch"])), {})


@lru_cache(maxsize=1)
def _families() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with FAMILIES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["family"], []).append(row)
    return found
