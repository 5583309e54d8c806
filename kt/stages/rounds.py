"""Rounds of the rule ``adaptive``: each chooses its pairs from the finished transfers of those before.

A choice depends on files alone: on these transfers, the scores of all pairs and the table of models. So a run that was
killed chooses the same again. Of the images it sees the validation split only; the test split measures what was chosen.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from kt import pairs as pairing
from kt.errors import KtError
from kt.layout import Layout
from kt.pairs import Adaptive
from kt.stages.common import metadata
from kt.study.study import Study
from kt.tables import schema
from kt.transfer import export
from kt.transfer.ledger import Ledger

log = logging.getLogger(__name__)

EXTRA = {"round": pa.int64(), "why": pa.string()}
"""Columns of the table ``pairs`` that this rule adds."""


def choose_round(study: Study, layout: Layout, number: int, out: Path) -> None:
    """Choose the pairs of one round.

    Raises:
        KtError: the configuration has another rule, or fewer rounds; or no transfer so far has a value to learn from.
    """
    rule = study.pairs
    if not isinstance(rule, Adaptive):
        raise KtError(f"pairs.select: {rule.select!r} has no rounds; allowed: adaptive")
    if number > rule.rounds:
        raise KtError(f"--round: {number} is not among those of pairs.rounds; allowed: 0 to {rule.rounds}")
    if number == 0:
        rows = [(t, s, "drawn at random") for t, s in pairing.start(study.names, rule)]
    else:
        with threadpool_limits(1):  # so that the number of cores changes no rounding
            rows = _next(study, layout, rule, number)
    place = pairing.rounds(study.names, rule)
    made = {
        "teacher": [teacher for teacher, _, _ in rows],
        "student": [student for _, student, _ in rows],
        "reason": [f"adaptive: {rule.aim if number else 'start'}"] * len(rows),
        "chunk": [place[student].index(number) for _, student, _ in rows],
        "round": [number] * len(rows),
        "why": [why for _, _, why in rows],
    }
    schema.write(out, "pairs", schema.build("pairs", made, EXTRA), metadata(study))
    log.info("round %d of %d: %d pairs", number, rule.rounds, len(rows))


def gather_rounds(study: Study, layout: Layout, rule: Adaptive) -> pa.Table:
    """The table ``pairs``: all rounds, by student, round and teacher."""
    found = pa.concat_tables([_read(layout, number) for number in range(rule.rounds + 1)])
    place = {name: i for i, name in enumerate(study.names)}
    rows = sorted(found.to_pylist(), key=lambda row: (place[row["student"]], row["round"], place[row["teacher"]]))
    return schema.build("pairs", rows, EXTRA)


def _read(layout: Layout, number: int) -> pa.Table:
    return schema.read(layout.round(number), "pairs", extra=True)


def _next(study: Study, layout: Layout, rule: Adaptive, number: int) -> list[tuple[str, str, str]]:
    """Teacher, student and reason of the pairs of a round after the first."""
    from kt.analysis import adaptive
    from kt.analysis.inputs import prepare
    from kt.analysis.outcomes import collect
    from kt.analysis.wording import decimals

    earlier = pa.concat_tables([_read(layout, before) for before in range(number)]).to_pylist()
    models = schema.read_frame(layout.table("zoo"), "zoo")
    transfers = _on_validation(_transfers(layout, earlier), models, Ledger(layout.ledger))
    scores = schema.read_frame(layout.complementarity("validation"), "complementarity").drop(columns="split")
    inputs = prepare(transfers, _shown(models), scores, study.task.words)
    candidates, known = pairing.candidates(study.names, rule), collect(inputs, study.names)
    teachers, students = (known.number(role) for role in zip(*candidates, strict=True))
    row = {pair: i for i, pair in enumerate(candidates)}
    value = adaptive.values(inputs.transfers, rule.aim)
    value = value[[pair in row for pair in value.index]]
    if value.empty:
        raise KtError(f"round {number}: no transfer before it has a value on validation to learn from")
    done = {(pair["teacher"], pair["student"]) for pair in earlier}
    allowed = np.array([pair not in done for pair in candidates])
    left = Counter(student for teacher, student in candidates if (teacher, student) not in done)
    quota = _quota(study, rule, number, transfers, left)
    picks = adaptive.choose(
        adaptive.Zoo.of(known, teachers, students),
        np.array([row[pair] for pair in value.index]),
        np.asarray(value, np.float64),
        allowed,
        np.array([quota.get(name, 0) for name in study.names], np.int64),
        rule.aim,
        decimals(study.task.words),
    )
    return [(*candidates[pick.row], pick.why) for pick in picks]


def _transfers(layout: Layout, pairs: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of the jobs that did some pairs."""
    jobs = dict.fromkeys((pair["student"], pair["chunk"]) for pair in pairs)
    return pd.concat([schema.read_frame(layout.transfer(*job), "transfers") for job in jobs], ignore_index=True)


ON_TEST = ("ece", "log_ratio", "entropy", "acc_agrees")
"""Properties of models that are measured on the test split."""


def _shown(models: pd.DataFrame) -> pd.DataFrame:
    """The table of models as a choice sees it: nothing from the test split."""
    return models.drop(columns=list(ON_TEST)).assign(acc=models["acc_validation"])


def _on_validation(transfers: pd.DataFrame, models: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """The same rows with the deltas on validation; none where a method keeps no value of its own there."""
    before = models.set_index("name")["acc_validation"]
    taught = (transfers["status"] == "ok") & transfers["trains"] & ~transfers["control"]
    after = {key: export.on_validation(ledger.get(key) or {}) for key in transfers.loc[taught, "key"]}
    values = transfers["key"].map(after).astype(float)
    return transfers.assign(delta=values - transfers["student"].map(before))


def _quota(
    study: Study, rule: Adaptive, number: int, transfers: pd.DataFrame, left: Mapping[str, int]
) -> dict[str, int]:
    """Pairs of every student in a round, of those ``left``."""
    if rule.budget is None:
        teachers = Counter(student for _, student in pairing.candidates(study.names, rule))
        return {student: of_rounds[number] for student, of_rounds in pairing.quotas(teachers, rule).items()}
    spent = float(transfers.drop_duplicates("key")["seconds"].sum()) / 3600
    return affordable((rule.budget - spent) / (rule.rounds - number + 1), hours_of_pair(transfers, left), left)


def hours_of_pair(transfers: pd.DataFrame, students: Iterable[str]) -> dict[str, float]:
    """Hours that all trainings of one more pair take: the student's mean so far, or that of all where it has none."""
    rows = transfers[~transfers["control"]]
    hours = rows.groupby(["student", "teacher"])["seconds"].sum() / 3600
    means = hours.groupby("student").mean()
    return {student: float(means.get(student, hours.mean())) for student in students}


def affordable(hours: float, cost: Mapping[str, float], left: Mapping[str, int]) -> dict[str, int]:
    """Pairs of every student, as many in all as the hours allow, in parts as equal as the pairs ``left`` allow."""

    def takes(total: int) -> float:
        return sum(n * cost[student] for student, n in pairing.spread(total, left).items())

    return pairing.spread(max(0, bisect_right(range(sum(left.values()) + 1), hours, key=takes) - 1), left)
