"""Pairs of models of saliency: agreement of maps against a loop, and flips of correlations over videos."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tables import InMemory

from kt import predictions
from kt.complementarity import agreement, table
from kt.complementarity.sources import Files
from kt.complementarity.spec import MEASURES, ComplementaritySpec, possible
from kt.data.clips import Videos, Watched
from kt.tables import schema
from kt.tasks import maps
from kt.tasks.classification import Classification
from kt.tasks.saliency import METRICS, Saliency
from kt.tasks.segmentation import Segmentation
from kt.tasks.task import Words, standard_error

TASK = Saliency()
NAMES, SIDES = ("fine", "coarse", "flat", "half"), (12, 16)
VIDEOS = Videos(("a", "b", "c"), np.array([0, 4, 9]), np.array([4, 5, 6]))
ROWS = np.array([1, 3, 4, 6, 8, 9, 11, 14])


@pytest.fixture(scope="module")
def truth() -> Watched:
    """Maps and fixations of eight frames of three videos."""
    rng = np.random.default_rng(0)
    fixations = np.stack([np.repeat(np.arange(15), 3), rng.integers(0, 12, 45), rng.integers(0, 16, 45)], 1)
    return Watched(rng.integers(0, 256, (15, *SIDES), np.uint8), ROWS, fixations.astype(np.int32), VIDEOS)


class Maps(InMemory):
    """Maps of every model, and the metrics of each: models have sizes of their own, one is constant."""

    def __init__(self, truth: Watched, lacking: tuple[str, ...] = ()) -> None:
        rng = np.random.default_rng(1)
        sides = {"fine": SIDES, "coarse": (6, 8), "flat": (6, 8), "half": (24, 32)}
        answers = {name: torch.from_numpy(rng.random((8, *sides[name]), np.float32)) for name in NAMES}
        answers["flat"][:] = 0.4
        answers["half"][::2] = 0.0
        super().__init__({name: TASK.cached(answers[name]).numpy() for name in NAMES})
        known, self.lacking = torch.from_numpy(truth[slice(None)]), lacking
        self.metrics = {name: TASK.kept(TASK.aligned(answers[name], known), known).numpy() for name in NAMES}

    def kept(self, model: int, rows: slice) -> np.ndarray:
        return self.metrics[NAMES[model]][rows]

    def has_answers(self, model: int) -> bool:
        return NAMES[model] not in self.lacking


def scored(source: Maps, truth: Watched, earlier: Path | None = None) -> pd.DataFrame:
    with ThreadPoolExecutor(2) as pool:
        made = table.make(source, truth, 0, "test", ComplementaritySpec(), earlier, pool, TASK)
        return pd.concat([piece.to_pandas() for piece in made.pieces]).set_index(["teacher", "student"])


@pytest.mark.parametrize("held", [1, 12 * 16 * 4 * 3, 1 << 21])
def test_agreement_is_the_mean_correlation_of_the_maps_as_they_are_scored(truth, monkeypatch, held):
    monkeypatch.setattr(agreement, "HELD_VALUES", held)
    source = Maps(truth)
    found, known = scored(source, truth)["agreement"], torch.zeros(8, 3, *SIDES)
    judged = {name: TASK.judged(TASK.aligned(torch.from_numpy(source.of[name]).float(), known)) for name in NAMES}
    for (teacher, student), value in found.items():
        each = [maps.correlation(judged[teacher][[i]], judged[student][[i]]).item() for i in range(8)]
        assert value == pytest.approx(np.mean(each), abs=1e-9)
    assert found["fine", "coarse"] == found["coarse", "fine"] != 0
    assert found["fine", "flat"] == 0  # and not undefined
    assert found["fine", "half"] != 0


def test_agreement_is_unknown_where_answers_are_not_kept(truth):
    found = scored(Maps(truth, lacking=("coarse",)), truth)["agreement"]
    assert {pair for pair, value in found.items() if np.isnan(value)} == {
        pair for pair in found.index if "coarse" in pair
    }
    pd.testing.assert_series_equal(found.dropna(), scored(Maps(truth), truth)["agreement"][found.dropna().index])


def test_files_say_whether_answers_are_kept(tmp_path):
    answers, kept, ids = np.ones((3, 2, 2), np.float16), np.zeros((3, 6), np.float32), np.arange(3)
    predictions.write(tmp_path / "a", {"test": predictions.Outputs(answers, kept, ids)}, "p", "d")
    predictions.write(tmp_path / "b", {"test": predictions.Outputs(None, kept, ids)}, "q", "d")
    source = Files({"a": tmp_path / "a", "b": tmp_path / "b"}, "test")
    assert [source.has_answers(0), source.has_answers(1)] == [True, False]
    assert np.array_equal(source.logits(0, slice(1, 3)), answers[1:])


def test_flips_differ_by_exactly_the_difference_of_correlations_with_errors_over_videos(truth):
    source = Maps(truth)
    found = scored(source, truth)
    scores = {name: TASK.scores(of, truth) for name, of in source.metrics.items()}
    clusters = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    for (teacher, student), row in found.iterrows():
        lead = scores[teacher] - scores[student]
        assert row["acc_difference"] == pytest.approx(lead.mean(), abs=1e-15)
        assert row["pos_flips"] - row["neg_flips"] == pytest.approx(row["acc_difference"], abs=1e-15)
        assert row["pos_flips"] == pytest.approx(np.maximum(lead, 0).mean(), abs=1e-15)
        assert row["pos_flips_se"] == pytest.approx(float(standard_error(np.maximum(lead, 0), clusters)), rel=1e-12)
    assert (found["n"] == 8).all()
    assert found[["class_entropy", "kappa", "double_fault", "pos_flips_untrained", "pixel_flips"]].isna().all(axis=None)


def test_a_published_value_is_compared_by_the_error_over_videos():
    scores, clusters = np.repeat([0.2, 0.4, 0.9], 50), np.repeat([0, 1, 2], 50)
    single, over_videos = TASK.error(scores), TASK.error(scores, clusters)
    assert over_videos > 5 * single
    near = scores.mean() + 2.9 * over_videos
    assert TASK.agrees(scores, near, clusters)
    assert not TASK.agrees(scores, near)
    assert not TASK.agrees(scores, scores.mean() + 3.1 * over_videos, clusters)


def test_a_table_is_added_to_where_a_model_answers_otherwise(truth, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        made = table.make(Maps(truth), truth, 0, "test", ComplementaritySpec(), None, pool, TASK)
        facts = {schema.TASK: TASK.words.to_json()} | made.facts.metadata()
        schema.write_pieces(tmp_path / "earlier", "complementarity", made.pieces, facts)
    changed = Maps(truth)
    changed.of = {**changed.of, "coarse": changed.of["coarse"][::-1].copy()}  # other maps, whatever their scores
    pd.testing.assert_frame_equal(scored(changed, truth, tmp_path / "earlier"), scored(changed, truth))
    with ThreadPoolExecutor(2) as pool:
        again = table.make(Maps(truth), truth, 0, "test", ComplementaritySpec(), tmp_path / "earlier", pool, TASK)
        assert again.measured == 0
        assert pa_rows(again) == pa_rows(made_anew(truth))


def made_anew(truth: Watched) -> table.Table:
    with ThreadPoolExecutor(2) as pool:
        made = table.make(Maps(truth), truth, 0, "test", ComplementaritySpec(), None, pool, TASK)
        return table.Table(made.facts, made.measured, iter(list(made.pieces)))


def pa_rows(made: table.Table) -> list[dict[str, object]]:
    return [row for piece in made.pieces for row in piece.to_pylist()]


def test_of_the_optional_measures_agreement_alone_makes_sense():
    assert [measure for measure in MEASURES if possible(measure, TASK.words)] == ["agreement"]
    assert possible("pos_flips", TASK.words)
    assert not any(possible(column, TASK.words) for column in ("class_entropy", "expertise", "pixel_flips"))


def test_words_say_what_examples_belong_to_and_older_ones_stay_as_they_are():
    assert (TASK.words.cluster, TASK.words.maps, TASK.words.example) == ("video", True, "frame")
    assert Words.from_json(TASK.words.to_json()) == TASK.words
    for task in (Classification(), Segmentation()):
        assert not task.words.maps
        assert "cluster" not in task.words.to_json()
        assert Words.from_json(task.words.to_json()) == task.words


def test_a_picture_shows_the_map_as_it_is_judged(truth):
    source, known = Maps(truth), torch.from_numpy(truth[slice(None)])
    answers = TASK.aligned(torch.from_numpy(source.of["coarse"]).float(), known)
    shown, judged = TASK.shown(answers), maps.blur(answers.double())
    assert (shown.dtype, shown.shape) == (torch.uint8, (8, *SIDES))
    assert shown.amax((1, 2)).tolist() == [255] * 8
    assert torch.equal(shown, (255 * judged / judged.amax((1, 2), keepdim=True)).round().byte())
    assert not TASK.shown(torch.zeros(1, *SIDES)).any()
    assert METRICS[0] == TASK.metric.key
