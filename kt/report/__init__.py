"""The report: one HTML page that needs no network, with the answer first."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import kt
from kt.analysis.describe import answer
from kt.figures import EXPERIMENTS, FIGURES
from kt.figures.style import Tables
from kt.report import content
from kt.report.captions import CAPTIONS
from kt.transfer.method import registry

PAPERS = {
    "FG": ("Roth et al.: Fantastic Gains and Where to Find Them, ICLR 2024", "2310.17653"),
    "CFL": ("Luo et al.: Knowledge Amalgamation by Common Feature Learning, IJCAI 2019", "1906.10546"),
    "BiKD": ("Jain, Karthik, Gandhi: Simplifying Knowledge Transfer in Pretrained Models, TMLR 2025", "2510.22208"),
}
STANDARD_ERROR = ("Aronow, Samii, Assenova: Cluster-Robust Variance Estimation for Dyadic Data, 2015", "1312.3398")
SHOWN = 120 / 200
"""CSS pixels a dot: figures have 200 dots an inch and are shown a quarter larger than in print (96 pixels an inch)."""


def render(
    tables: Path, figures: Path, config_text: str, versions: Mapping[str, str], title: str, equal_within: float
) -> str:
    """The whole report as one HTML page.

    Args:
        tables: folder of the final tables.
        figures: folder of the drawn figures; one that is not there is left out.
        config_text: ``config.yaml`` as the user wrote it.
        versions: of Python and the libraries, by name.
        title: the study's title.
        equal_within: percentage points; a teacher this close to its student counts as equal.

    Raises:
        KtError: a table is missing or does not fit its schema.
    """
    data = Tables.read(tables)
    template = _environment().get_template("template.html")
    return template.render(
        title=title,
        answer=answer(data.methods, data.transfers, data.complementarity, equal_within),
        equal_within=equal_within,
        summary=content.summary(data),
        figures=[
            _figure(figures / f"{name}.png", name)
            for name in (*FIGURES, *EXPERIMENTS)
            if (figures / f"{name}.png").exists()
        ],
        zoo=content.zoo(data),
        top_pairs=content.top_pairs(data),
        failures=content.failures(data),
        methods=_definitions(data),
        papers=[*PAPERS.items(), ("standard error", STANDARD_ERROR)],
        config=config_text,
        versions={"kt": kt.__version__, **versions},
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kt.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = code
    return environment


def code(text: str) -> Markup:
    """Escaped text whose parts between backticks are set as code."""
    return Markup(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", str(escape(text))))  # noqa: S704 (escaped just before)


def _figure(path: Path, name: str) -> dict[str, Any]:
    image = path.read_bytes()
    width, height = struct.unpack(">II", image[16:24])  # of the PNG's first chunk: the page must not jump as it loads
    return {
        "name": name,
        "caption": CAPTIONS[name],
        "data": base64.b64encode(image).decode(),
        "width": round(width * SHOWN),
        "height": round(height * SHOWN),
    }


def _definitions(data: Tables) -> list[tuple[str, str]]:
    """The study's methods and what they do, as their own documentation says."""
    known = registry()
    names = data.transfers["method"].drop_duplicates().sort_values()
    return [(name, " ".join((known[name].__doc__ or "").split()) if name in known else UNKNOWN) for name in names]


UNKNOWN = "Not a method of this version of kt."
