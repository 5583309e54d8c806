"""The queries in docs/sql.md say the same as pandas does."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import tables

ROOT = Path(__file__).resolve().parent.parent
CLASSES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="module")
def study() -> dict[str, pd.DataFrame]:
    """Tables with failed trainings, and with rows of groups."""
    made = tables.study(models=5, seeds=3)
    transfers = made["transfers"]
    transfers["seconds"] = transfers["key"].map({key: 1.0 + i % 7 for i, key in enumerate(transfers["key"].unique())})
    failed = ["kl-model_0-model_4-1", "finetune--model_2-0", "kl_dp-model_1-model_0-2"]
    tables.fail(made, transfers["key"].isin(failed))
    return tables.with_groups(made)


@pytest.fixture(scope="module")
def answers(study, tmp_path_factory) -> dict[str, pd.DataFrame]:
    """The answer of every query, by its question."""
    folder = tmp_path_factory.mktemp("results")
    tables.write(folder / "tables", study, classes=CLASSES)
    text = (ROOT / "docs/sql.md").read_text("utf-8")
    asked = re.findall(r"^## (.*?)\n.*?```sql\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert len(asked) == text.count("```sql") == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {question: duckdb.sql(query).df() for question, query in asked}


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(found) > 0
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True)[list(found)], check_dtype=False)


def ordered(frame: pd.DataFrame, first: str, *then: str) -> pd.DataFrame:
    """The highest value of a column first; ties by the others."""
    return frame.sort_values([first, *then], ascending=[False, *[True] * len(then)])


def of_pairs(study: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study["transfers"].query("status == 'ok' and teacher.notna()")


def test_methods(study, answers):
    per_pair = of_pairs(study).groupby(["method", "control", "teacher", "student"], as_index=False)["delta"].mean()
    per_pair["success"] = 100.0 * (per_pair["delta"] > 0)
    expected = per_pair.groupby(["method", "control"], as_index=False).agg(
        pairs=("teacher", "size"), delta=("delta", "mean"), success=("success", "mean")
    )
    found = answers["Which method gains most?"]
    same(found, ordered(expected, "delta", "method"))
    table = study["methods"].query("group == 'all'").set_index("method").loc[found["method"]].reset_index()
    same(found, table)


def test_pairs_beyond_their_control(study, answers):
    rows = of_pairs(study)
    controls = rows[rows["control"]].drop_duplicates("key").set_index(["student", "seed", "method"])["delta"]
    rows = rows[~rows["control"]]
    against = np.where(rows["uses_labels"], "finetune", "self")
    keys = pd.MultiIndex.from_arrays([rows["student"], rows["seed"], against])
    rows = rows.assign(beyond=rows["delta"].to_numpy() - controls.reindex(keys).to_numpy()).dropna(subset="beyond")
    expected = rows.groupby(["method", "teacher", "student"], as_index=False).agg(
        seeds=("seed", "size"), delta=("delta", "mean"), beyond=("beyond", "mean")
    )
    assert set(expected["seeds"]) == {2, 3}  # a failed training has no row, nor has one whose control failed
    found = answers["Which pairs gain more than their control?"]
    same(found, ordered(expected[expected["beyond"] > 0], "beyond", "method", "teacher", "student"))


def test_weaker_teachers(study, answers):
    kinds = study["zoo"].set_index("name")["kind"]
    scores = study["complementarity"].query("acc_difference < -2")
    scores = scores.assign(teacher_kind=scores["teacher"].map(kinds), student_kind=scores["student"].map(kinds))
    same(answers["Which weaker teachers know most?"], ordered(scores, "pos_flips", "teacher", "student").head(10))


def test_classes_by_name(study, answers):
    scores = study["complementarity"]
    counts = np.stack(scores["flips_by_class"])
    expected = scores.assign(flips=counts.max(1), **{"class": [CLASSES[c] for c in counts.argmax(1)]})
    same(answers["In which classes does a teacher know more?"], ordered(expected, "flips", "teacher", "student"))


def test_costs(study, answers):
    trainings = study["transfers"].drop_duplicates("key")
    trainings = trainings.assign(failed=trainings["status"] == "failed", hours=trainings["seconds"] / 3600)
    expected = trainings.groupby("method", as_index=False).agg(
        trainings=("key", "size"), failed=("failed", "sum"), hours=("hours", "sum")
    )
    same(answers["What did each method cost?"], ordered(expected, "hours", "method"))
