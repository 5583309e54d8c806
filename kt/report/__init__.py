"""The report: one HTML page that needs no network, with the answer first."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

import kt
from kt.analysis.answer import answer, focus
from kt.analysis.deltas import gains
from kt.analysis.wording import caption_words, plural
from kt.control.methods import ControlMethods
from kt.figures.captions import CAPTIONS, Caption
from kt.figures.tables import Tables
from kt.report import grids, policies
from kt.report.sections import SECTIONS, SPEAKS_FOR_ITSELF, Facts
from kt.spec import Options
from kt.transfer.method import registry
from kt.transfer.methods.amalgamation import Methods
from kt.transfer.methods.flow import FlowMethods

PAPERS = {
    "FG": ("Roth et al.: Fantastic Gains and Where to Find Them, ICLR 2024", "2310.17653"),
    "CFL": ("Luo et al.: Knowledge Amalgamation by Common Feature Learning, IJCAI 2019", "1906.10546"),
    "KF": ("Liu, Peng, Schwing: Knowledge Flow: Improve Upon Your Teachers, ICLR 2019", "1904.05878"),
    "BiKD": ("Jain, Karthik, Gandhi: Simplifying Knowledge Transfer in Pretrained Models, TMLR 2025", "2510.22208"),
}
ERRORS = {
    "robust error": ("Aronow, Samii, Assenova: Cluster-Robust Variance Estimation for Dyadic Data, 2015", "1312.3398"),
}
SHOWN = 120 / 200
"""CSS pixels per dot: figures have 200 dots per inch and are shown a quarter larger than in print (96 per inch)."""


def render(
    data: Tables, figures: Path, config_text: str, versions: Mapping[str, str], title: str, equal_within: float
) -> str:
    """The whole report as one HTML page.

    Args:
        data: the tables; what needs those of the analysis is left out where there are none.
        figures: folder of the drawn figures; one that is not there is left out.
        config_text: ``config.yaml`` as the user wrote it.
        versions: of Python and the libraries, by name.
        title: the study's title.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
    """
    template = _environment().get_template("template.html")
    return template.render(
        title=title,
        answer=policies.answer(data) if data.task.plays else answer(data.drawn, data.analysis, equal_within),
        experiments="" if data.task.plays else grids.experiments(data),
        task=data.task,
        examples=plural(data.task.example),
        flips=caption_words(data.task)["flips"],
        sections=list(_sections(data, figures, equal_within)),
        methods=_definitions(data),
        papers=[("KF", PAPERS["KF"])] if data.task.plays else [*PAPERS.items(), *ERRORS.items()],
        config=config_text,
        versions={"kt": kt.__version__, **versions},
    )


def _sections(data: Tables, folder: Path, equal_within: float) -> Iterator[dict[str, Any]]:
    """Every section that has rows, figures or words of its own."""
    found = gains(data.drawn.transfers, data.drawn.scores, equal_within)
    weaker = gains(data.drawn.transfers, data.drawn.scores, equal_within, "weaker")
    compared = [gain for gain in found if gain.control]
    facts = Facts(data, compared, weaker, focus(found) if found else None, equal_within)
    captions = {name: caption.told(caption_words(data.task)) for name, caption in CAPTIONS.items()}
    for section in SECTIONS:
        part = section.make(facts)
        names = [name for name, caption in captions.items() if caption.section == section.name]
        drawn = [_figure(path, name, captions[name]) for name in names if (path := folder / f"{name}.png").exists()]
        filled = [grid for grid in part.grids if grid.rows]
        shown = [figure for figure in drawn if not figure["missing"]]
        if filled or shown or (section.name in SPEAKS_FOR_ITSELF and part.before):
            missing = [figure for figure in drawn if figure["missing"]]
            yield {**section._asdict(), **part._asdict(), "grids": filled, "figures": shown, "missing": missing}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = code
    return environment


def code(text: str) -> Markup:
    """Escaped text whose parts between backticks are set as code."""
    return Markup(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", str(escape(text))))  # noqa: S704 (escaped just before)


def _figure(path: Path, name: str, caption: Caption) -> dict[str, Any]:
    with Image.open(path) as image:
        (width, height), missing = image.size, image.info.get("missing")
    return {
        "name": name,
        "caption": caption,
        "data": base64.b64encode(path.read_bytes()).decode(),
        "width": round(width * SHOWN),  # the page must not jump as it loads
        "height": round(height * SHOWN),
        "missing": missing,
    }


def _definitions(data: Tables) -> list[tuple[str, str]]:
    """The study's methods, and what their own documentation says they do."""
    options: tuple[type[Options], ...] = (ControlMethods,) if data.task.plays else (Methods, FlowMethods)
    known = {name: type(method) for made in options for name, method in made.defaults().items()}
    known |= {} if data.task.plays else registry()
    names = pd.concat(frame["method"] for frame in (data.transfers, *data.experiments.values()))
    names = names.drop_duplicates().sort_values()
    return [(name, " ".join((known[name].__doc__ or "").split()) if name in known else UNKNOWN) for name in names]


UNKNOWN = "Not a method of this version of kt."
