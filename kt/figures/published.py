"""Published results as landmarks in figures of studies of the same data set, ImageNet.

They stand beside a method only where it ran with the published parameters. ``docs/methods.md`` lists what stays
different.

Source: FG; 20 students x 20 teachers on a tenth of ImageNet's training images, where nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import nan
from typing import Any, TypeVar

from kt.figures.tables import Tables

Value = TypeVar("Value")

DESIGN = "FG: ImageNet, 20 students × 20 teachers"

_KL: dict[str, Any] = {"temperature": 1.0}
_LABELS: dict[str, Any] = {"label_smoothing": 0.0}
PARAMETERS: dict[str, dict[str, Any]] = {
    "kl": _KL,
    "xekl": {**_KL, **_LABELS, "alpha": 0.5},
    "xekl_mcl": {
        **_KL,
        **_LABELS,
        "alpha": 0.68,
        "tau": 0.9999,
        "every": 2,
        "flips": "running",
        "mean": "taught",
        "top": 100,
        "updates": "each_epoch",
        "start": "shared",
        "evaluation": "overwrites",
    },
    "kl_dp": _KL,
    "kl_dp_unsup": _KL,
    "cd": {**_LABELS, "weight": 10.0, "label_weight": 0.1},
    "crd": {**_LABELS, "weight": 0.8, "nce_t": 0.07, "dim": 128, "negatives": 4096},
}


IMAGENET = {"imagenet", "imagenet-1k", "imagenet_1k", "imagenet1k", "imagenet2012", "ilsvrc", "ilsvrc2012"}
"""Names of the data set, in small letters."""


def same_data(tables: Tables) -> bool:
    """True where the study is of the data set of the published results."""
    return tables.data.lower() in IMAGENET


def comparable(values: Mapping[str, Value], tables: Tables) -> dict[str, Value]:
    """Of published values by method, those of methods that ran on the same data set with the published parameters.

    Args:
        values: by method.
        tables: of the study; methods whose parameters the table ``methods`` does not hold are not compared.
    """
    if not same_data(tables):
        return {}
    rows = tables.methods.dropna(subset=["parameters"])
    ran = {name: json.loads(text) for name, text in zip(rows["method"], rows["parameters"], strict=True)}
    return {name: value for name, value in values.items() if name in ran and ran[name] == PARAMETERS[name]}


# Percent of teachers: first quartile, median and third quartile over students.
SUCCESS = {
    "kl": (9.0, 32.5, 39.0),
    "xekl": (21.0, 42.5, 60.0),
    "xekl_mcl": (24.0, 80.0, 96.0),
    "kl_dp": (50.0, 92.5, 100.0),
    "kl_dp_unsup": (58.0, 82.5, 91.0),
    "cd": (nan, 0.0, nan),
    "crd": (nan, 0.0, nan),
}
SUCCESS_OF_KIND = {"kl_dp": {"transformer": 96.0, "mlp": 89.0, "cnn": 40.0}}  # percent of pairs, by the student's kind
DELTA = {"kl": -0.30, "kl_dp": 0.32}  # percentage points, mean over pairs
RATE_BY_SIZE = ((20e6, 20.0), (190e6, 50.0))  # parameters of the student, transfer rate in percent
FLIPS = ((0.0, 5.5), (20.0, 25.0))  # accuracy of teacher − student, positive flips in percent; 466 pairs of 301 models
FLIPS_LEAST = 2.0  # percent, of any of these pairs
SEVERAL = {  # three teachers: delta in percentage points of the students XCiT-P16 and PiT-B
    "single": (0.73, 0.64),
    "sequential": (0.97, 1.04),
    "parallel": (0.91, 0.77),
    "soup": (0.63, 0.69),
}
