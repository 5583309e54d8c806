"""The search of parameters: its candidates, its choice, and that the test split has no say in it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from studies import small_zoo

from kt import pairs, predictions, stages, status
from kt.errors import KtError
from kt.layout import Layout
from kt.study import load as config
from kt.study.check import check
from kt.study.study import Study
from kt.tables import schema
from kt.transfer import search
from kt.transfer.ledger import Ledger, unpack
from kt.transfer.methods.kl import KL
from kt.transfer.methods.xekl import XEKL
from kt.transfer.search import SearchSpec, candidates, pairs_of, units_of
from kt.transfer.training import Training
from kt.transfer.unit import Plans

STUDY: dict[str, Any] = {
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 60, "validation": 50, "test": 70}},
    "zoo": small_zoo(
        byob={"arch": "test_byobnet", "train": {"epochs": 2}},
        mixer={"arch": "tiny_mixer", "train": {"epochs": 2}},
    ),
    "pairs": {"select": "all"},
    "transfer": {
        "methods": {"xekl": {"temperature": 2.0}, "kl": {}, "finetune": {}},
        "seeds": [0],
        "training": {"epochs": 1, "batch_size": 30, "lr": 1e-3},
        "search": {
            "methods": {"xekl": {"alpha": [0.1, 0.9]}, "finetune": {"training": {"lr": [1e-6, 1e-2]}}},
            "pairs": 2,
        },
    },
}


def spec(**methods: Any) -> SearchSpec:
    return SearchSpec.model_validate({"methods": methods})


def test_candidates_are_all_combinations_and_keep_what_is_not_searched():
    methods = {"xekl": XEKL.model_validate({"temperature": 2.0, "training": {"epochs": 7}}), "kl": KL()}
    found = candidates(methods, spec(xekl={"alpha": (0.2, 1), "training": {"lr": (0.1, 0.2)}}))["xekl"]
    assert list(found) == [
        '{"alpha": 0.2, "training": {"lr": 0.1}}',
        '{"alpha": 0.2, "training": {"lr": 0.2}}',
        '{"alpha": 1.0, "training": {"lr": 0.1}}',
        '{"alpha": 1.0, "training": {"lr": 0.2}}',
    ]
    last = list(found.values())[-1]
    assert (last.alpha, last.temperature, last.training.lr, last.training.epochs) == (1.0, 2.0, 0.2, 7)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=9, unique=True), st.integers(1, 9))
def test_a_draw_keeps_the_grids_order_and_grows_only_by_what_it_draws(alphas, n):
    def draw(values: list[float]) -> list[str]:
        search = SearchSpec.model_validate({"methods": {"xekl": {"alpha": tuple(values)}}, "n": n})
        return list(candidates({"xekl": XEKL()}, search)["xekl"])

    found, every = draw(alphas), [json.dumps({"alpha": alpha}) for alpha in alphas]
    assert len(found) == min(n, len(alphas))
    assert found == [text for text in every if text in found]
    assert set(found) & set(every[:-1]) <= set(draw(alphas[:-1]))


def test_trials_are_measured_on_validation_and_a_control_has_no_teacher():
    found = {"kl": {"a": KL(), "b": KL(temperature=2.0)}}
    units = units_of(found, "s", ["x"], [5], Plans("d", Training(epochs=1, lr=0.1)))
    assert [(u.method.temperature, u.teachers, u.seed, u.split) for u in units] == [
        (1.0, ("x",), 5, "validation"),
        (2.0, ("x",), 5, "validation"),
    ]


def test_the_pairs_are_among_those_that_may_get_a_transfer():
    names, rule = [f"m{i}" for i in range(9)], pairs.Explicit(select="explicit", pairs=({"student": "m[12]"},))
    found = [(teacher, student) for student, teachers in pairs_of(names, rule, 5).items() for teacher in teachers]
    assert len(found) == 5
    assert set(found) <= set(pairs.candidates(names, rule))
    assert set(found) <= {(t, s) for s, ts in pairs_of(names, rule, 6).items() for t in ts}


def trial(parameters: str, student: str, seed: int, delta: float | None) -> dict[str, Any]:
    status = "ok" if delta is not None else "failed"
    row = {"teacher": "t", "student": student, "method": "kl", "parameters": parameters, "seed": seed}
    return {**row, "status": status, "reason": None if delta is not None else "diverged: x", "delta": delta}


def test_the_choice_by_hand():
    rows = [
        *(trial("a", s, seed, d) for s, seed, d in (("x", 0, 1.0), ("x", 1, 3.0), ("y", 0, 0.0), ("y", 1, 0.0))),
        *(trial("b", s, seed, d) for s, seed, d in (("x", 0, 4.0), ("x", 1, 6.0), ("y", 0, -1.0), ("y", 1, 1.0))),
        *(trial("c", s, seed, d) for s, seed, d in (("x", 0, 9.0), ("x", 1, 9.0), ("y", 0, 9.0), ("y", 1, None))),
        *(trial("d", s, seed, d) for s, seed, d in (("x", 0, 3.0), ("x", 1, 3.0), ("y", 0, 2.0), ("y", 1, 2.0))),
    ]
    found = search.summarise(pd.DataFrame(rows), {"kl": ["a", "b", "c", "d"]}).set_index("parameters")
    # over the pairs x and y: a has 2 and 0, b has 5 and 0, d has 3 and 2 and comes after b
    assert found["delta"].tolist() == [1.0, 2.5, 9.0, 2.5]
    assert found["chosen"].tolist() == [False, True, False, False]
    assert found["failed"].tolist() == [0, 0, 1, 0]
    assert found["trainings"].tolist() == [4, 4, 4, 4]
    assert found["delta_se"].tolist() == pytest.approx([1.0, 2.5, 0.0, 0.5])
    # from b, pair by pair: a is −3 and 0, d is −2 and 2
    assert found.loc["a", ["difference", "difference_se"]].tolist() == pytest.approx([-1.5, 1.5])
    assert found.loc["d", ["difference", "difference_se"]].tolist() == pytest.approx([0.0, 2.0])
    schema.build("search", found.reset_index().to_dict("list"))


def test_a_single_pair_has_no_error_and_a_method_that_fails_everywhere_is_one_line():
    one = search.summarise(pd.DataFrame([trial("a", "x", 0, 1.0), trial("b", "x", 0, 2.0)]), {"kl": ["a", "b"]})
    assert one["delta_se"].tolist() == [None, None]
    with pytest.raises(KtError, match=r"transfer.search.methods.kl: every candidate failed; the first: diverged: x"):
        search.summarise(pd.DataFrame([trial("a", "x", 0, None)]), {"kl": ["a"]})
    with pytest.raises(KtError, match="no row of kl with b; `kt search` makes it"):
        search.summarise(pd.DataFrame([trial("a", "x", 0, 1.0)]), {"kl": ["a", "b"]})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"methods": {"xekl": {"alpah": [0, 1]}}}, r"search.methods.xekl: unknown key 'alpah'.*did you mean 'alpha'"),
    ({"methods": {"xekl": {"alpha": [0.5, 2]}}}, r"search.methods.xekl.alpha.1: .*less than or equal to 1, not 2"),
    ({"methods": {"xekl": {"alpha": [0.5]}}}, "xekl: one combination leaves nothing to choose"),
    ({"methods": {}}, "no method to search"),
    (
        {"methods": {"kl_dp": {"temperature": [1, 2]}}},
        "search.methods: unknown method 'kl_dp'; allowed: finetune, kl, x",
    ),
    ({"methods": {"ensemble_max": {}}}, "unknown key 'ensemble_max'"),
    ({"methods": {"xekl": {"alpha": [0, 1]}}, "seeds": [0]}, r"search.seeds: \[0\] are among transfer.seeds"),
    ({"methods": {"xekl": {"alpha": [0, 1]}}, "seeds": [7, 7]}, "seeds must be distinct"),
    ({"methods": {"kl": {"training": {"batch_size": [8, 900]}}}}, r"search.methods.kl.training.batch_size: 900"),
]


@pytest.mark.parametrize(("search", "message"), BAD)
def test_a_wrong_search_is_one_line(tmp_path, search, message):
    study = {**STUDY, "results": str(tmp_path / "r"), "transfer": {**STUDY["transfer"], "search": search}}
    with pytest.raises(KtError, match=message) as error:
        check(config.parse(yaml.safe_load(json.dumps(study)), "x"))
    assert len(str(error.value).splitlines()) == 1


def load(folder: Path, study: dict[str, Any]) -> tuple[Study, Layout]:
    (folder / "config.yaml").write_text(yaml.safe_dump({**study, "results": str(folder / "results")}))
    loaded = config.load(folder / "config.yaml")
    return loaded, Layout(Path(loaded.results))


def searched(study: Study, layout: Layout) -> pd.DataFrame:
    for student in study.transfer.trial_pairs(study.names, study.pairs):
        stages.search(study, layout, student, layout.transfer(student, "search"), 1)
    stages.choose(study, layout, layout.table("search"))
    return pd.read_csv(layout.tables / "search.csv")


def keys(layout: Layout) -> set[str]:
    return {path.stem for path in layout.ledger.glob("??/*.json")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The study's models, and its search."""
    folder = tmp_path_factory.mktemp("search")
    study, layout = load(folder, STUDY)
    stages.data(study, layout, 1)
    for name in study.names:
        stages.weights(study, layout, name, 1)
        stages.predict(study, layout, name, 1)
    return folder, searched(study, layout)


def test_the_search_trains_each_candidate_on_each_pair_and_a_second_one_nothing(done):
    folder, table = done
    study, layout = load(folder, STUDY)
    assert table["method"].tolist() == ["finetune", "finetune", "xekl", "xekl"]
    assert table.groupby("method")["chosen"].sum().tolist() == [1, 1]
    assert table[["pairs", "trainings", "failed"]].to_numpy().tolist() == [[2, 2, 0]] * 4
    trial = schema.read_frame(layout.transfer("byob", "search"), "trials")
    assert trial["n"].eq(50).all()
    assert trial["teacher"].isna().tolist() == (trial["method"] == "finetune").tolist()
    before, state = keys(layout), status.survey(study, layout)
    # two pairs: 2 candidates of xekl and of finetune each; then xekl, kl and finetune from the one teacher each has
    assert (len(before), state.units, state.done, state.pairs, state.pairs_done) == (8, 8 + 6, 8, 2, 0)
    again = searched(study, layout)
    assert keys(layout) == before
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_no_record_of_the_search_holds_a_test_prediction(done):
    _, layout = load(done[0], STUDY)
    for key in keys(layout):
        unit, outcome = Ledger(layout.ledger).read(key)
        assert unit["split"] == "validation"
        assert len(unpack(outcome["last"])) == len(unpack(outcome["best"])) == 50


def test_the_chosen_parameters_are_what_the_transfer_trains_with(done):
    study, layout = load(done[0], STUDY)
    chosen = done[1][done[1]["chosen"]].set_index("method")["parameters"].map(json.loads)
    stages.transfer(study, layout, "byob", 0, None, layout.transfer("byob", 0), 1)
    for key in schema.read_frame(layout.transfer("byob", 0), "transfers")["key"]:
        unit, _ = Ledger(layout.ledger).read(key)
        assert "split" not in unit
        if unit["method"]["name"] == "xekl":
            assert (unit["method"]["alpha"], unit["method"]["temperature"]) == (chosen["xekl"]["alpha"], 2.0)
        lr = chosen["finetune"]["training"]["lr"] if unit["method"]["name"] == "finetune" else 1e-3
        assert unit["training"]["lr"] == lr
    state = status.survey(study, layout)
    assert (state.done, state.left, state.pairs_done) == (8 + 3, 3, 1)


def test_the_test_split_has_no_say(done, tmp_path, monkeypatch):
    """Test labels and images are replaced, test predictions unreadable: the same trials to the last bit."""
    shutil.copytree(done[0] / "results", tmp_path / "results")
    study, layout = load(tmp_path, STUDY)
    shutil.rmtree(layout.ledger)
    rows = schema.read_frame(layout.data / "splits.parquet", "splits")
    test = rows.loc[rows["split"] == "test", "row"].to_numpy()
    labels = np.load(layout.data / "labels.npy")
    labels[test] = (labels[test] + 1) % 10
    np.save(layout.data / "labels.npy", labels)
    images = np.load(layout.data / "images.npy")
    images[test] = 255
    np.save(layout.data / "images.npy", images)
    read = predictions.read
    monkeypatch.setattr(predictions, "read", lambda path, split: read(path, {"test": "gone"}.get(split, split)))
    with pytest.raises(KtError, match="gone"):
        predictions.read_all({"byob": layout.predictions("byob")}, "test")
    pd.testing.assert_frame_equal(searched(study, layout), done[1], check_exact=True)


def test_a_transfer_without_its_search_is_one_line(done, tmp_path):
    shutil.copytree(done[0] / "results", tmp_path / "results")
    study, layout = load(tmp_path, STUDY)
    layout.table("search").unlink()
    with pytest.raises(KtError, match="no such file"):
        stages.transfer(study, layout, "byob", 0, None, tmp_path / "out.parquet", 1)
    more = copy.deepcopy(STUDY)
    more["transfer"]["search"]["methods"]["xekl"]["alpha"] = [0.3, 0.4]
    shutil.copy(done[0] / "results/tables/search.parquet", layout.table("search"))
    study, layout = load(tmp_path, more)
    with pytest.raises(KtError, match=r"search of transfer.search.methods.xekl is not done; `kt choose` ends it"):
        stages.transfer(study, layout, "byob", 0, None, tmp_path / "out.parquet", 1)


def test_a_further_value_trains_that_value_alone(done, tmp_path):
    shutil.copytree(done[0] / "results", tmp_path / "results")
    more = copy.deepcopy(STUDY)
    more["transfer"]["search"]["methods"]["xekl"]["alpha"] = [0.1, 0.5, 0.9]
    study, layout = load(tmp_path, more)
    before = keys(layout)
    table = searched(study, layout)
    new = [Ledger(layout.ledger).read(key)[0]["method"] for key in keys(layout) - before]
    assert [method["alpha"] for method in new] == [0.5, 0.5]
    old = done[1].set_index("parameters")["delta"]
    assert table.set_index("parameters")["delta"][old.index].tolist() == old.tolist()
