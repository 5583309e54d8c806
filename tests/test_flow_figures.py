"""Figures of knowledge flow against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import tables

from kt.figures.experiments import by_method
from kt.figures.experiments import flow as draw
from kt.figures.fading import weights_over_seeds
from kt.figures.style import save
from kt.figures.tables import Tables
from kt.report.grids import experiments
from kt.tables import schema


def rows(
    method: str, seed: int, acc: float, teachers: list[str], images: int = 50, epochs: int = 0
) -> list[dict[str, object]]:
    shared = {
        "experiment": f"labels_{images}", "method": method, "seed": seed, "student": "resnet10t", "teachers": teachers,
        "uses_labels": True, "trains": True, "key": f"{method}{seed}{teachers}{images}", "images": images, "n": 100,
        "acc": acc, "acc_se": 1.0, "acc_best": acc,
    }  # fmt: skip
    return [shared] if not epochs else [
        {**shared, "epoch": epoch, "stage": stage, "source": source, "source_stage": "x", "weight": weight,
         "attached": 60.0, "detached": 50.0 + epoch}
        for epoch in range(1, epochs + 1) for stage in ("s0", "s1")
        for source, weight in (("self", 0.5), ("low", 0.2), ("low", 0.1), ("high", 0.2))
    ]  # fmt: skip


@pytest.fixture
def flow() -> pd.DataFrame:
    found = [row for seed, acc in ((0, 80.0), (1, 84.0)) for row in rows("flow", seed, acc, ["low", "high"], epochs=3)]
    found += rows("flow", 0, 90.0, ["low", "high"], 100, epochs=3)
    found += [row for name in ("low", "high") for row in rows("finetune_teacher", 0, 70.0, [name])]
    found += [row for seed, acc in ((0, 60.0), (1, 70.0)) for row in rows("scratch", seed, acc, [])]
    frame: pd.DataFrame = schema.build("flow", found).to_pandas()
    return frame


def with_flow(flow: pd.DataFrame) -> Tables:
    return Tables.of({**tables.study(models=2, seeds=1), "flow": flow})


def test_means_and_standard_errors_are_over_seeds_and_trials_count_once(flow: pd.DataFrame) -> None:
    found = by_method(flow).set_index(["experiment", "name"])
    assert found.loc[("labels_50", "flow"), ["acc", "se", "seeds"]].tolist() == pytest.approx([82.0, 2.0, 2])
    assert found.loc[("labels_50", "flow"), ["gain", "gain_se"]].tolist() == pytest.approx([17.0, 3.0])  # 20 and 14
    assert found.loc[("labels_50", "finetune_teacher low"), "gain"] == 10
    assert found.loc[("labels_100", "flow"), "acc"] == 90
    assert found[["gain"]].isna().sum().item() == 2  # no training from scratch to hold against; and itself
    assert found.loc[("labels_50", "finetune_teacher low"), "seeds"] == 1
    assert len(found) == 5


def test_the_answer_counts_experiments_that_are_clearly_ahead_and_behind(flow: pd.DataFrame) -> None:
    assert experiments(Tables.of(tables.study(models=2, seeds=1))) == ""
    worse = [row for seed in (0, 1) for row in rows("flow", seed, 40.0, ["low", "high"], 200)]
    worse += [row for seed, acc in ((0, 50.0), (1, 51.0)) for row in rows("scratch", seed, acc, [], 200)]
    control = [
        row for seed, acc in ((0, 61.0), (1, 69.0)) for row in rows("flow_untrained", seed, acc, ["low", "high"])
    ]
    more = schema.build("flow", worse + control).to_pandas()
    assert experiments(with_flow(pd.concat([flow, more]))) == (  # gains 20, 14; -10, -11; of the control 1, -1
        "Knowledge flow: compared with training from `scratch`, `flow` is clearly better in 1 of 2 experiments and"
        " clearly worse in 1 (−10.50 to +17.00 percentage points; 2 seeds). With teachers that know nothing,"
        " `flow_untrained` is clearly better in 0 of 1 experiment and clearly worse in 0 (+0.00 percentage points; 2"
        " seeds)."
    )


def test_a_teachers_weights_at_a_stage_add_up(flow: pd.DataFrame, tmp_path: Path) -> None:
    found = weights_over_seeds(flow[flow["method"] == "flow"])
    assert found.loc[found["source"] == "low", "mean"].to_numpy() == pytest.approx(0.3)
    assert found.groupby(["experiment", "stage", "epoch"])["mean"].sum().to_numpy() == pytest.approx(1.0)
    drawing = draw(with_flow(flow))
    assert len(drawing.figure.axes) == 1 + 2 * 3
    save(drawing, tmp_path, "flow")
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf", ".csv"}


def test_what_is_missing_is_left_out_and_without_any_trial_the_figure_says_so(flow: pd.DataFrame) -> None:
    assert draw(with_flow(flow.iloc[:0])).missing
    assert len(draw(with_flow(flow[flow["method"] == "scratch"])).figure.axes) == 1
