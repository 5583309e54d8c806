"""The data of the page to explore: they are the tables' own numbers, in the words of the task, and small."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest
import tables

from kt.analysis.deltas import PAIR
from kt.analysis.recommend import measured
from kt.cli import main
from kt.figures.tables import Tables
from kt.report import explore

PIXELS = "positive flips of pixels"


def unpacked(column):
    """The values of a packed column, as the page reads them."""
    if "floats" in column:
        return np.frombuffer(base64.b64decode(column["floats"]), "<f4")
    codes = np.frombuffer(base64.b64decode(column["codes"]), f"<u{column['width']}")
    return [column["values"][code] for code in codes] if "values" in column else codes


def frame(content, table):
    return pd.DataFrame({column["key"]: unpacked(column) for column in content[table]["columns"]})


@pytest.fixture(scope="module")
def study():
    return tables.study(models=5, seeds=2)


@pytest.fixture(scope="module")
def content(study):
    return explore.content(Tables.of(study), tables.EQUAL_WITHIN)


def test_few_values_are_kept_exactly_and_many_as_float32():
    few = pd.Series([0.1 + 0.2, np.nan, 1e300, 7.0])
    assert unpacked(explore.packed(few)) == [0.1 + 0.2, None, 1e300, 7]
    many = pd.Series(np.random.default_rng(0).normal(size=5000))
    assert np.array_equal(unpacked(explore.packed(many)), many.to_numpy("f4"))
    assert unpacked(explore.packed(pd.Series(["b", None, "a", "b"]))) == ["b", None, "a", "b"]
    wide = explore.packed(pd.Series(np.arange(300) / 7))
    assert (wide["width"], unpacked(wide)) == (2, [i / 7 for i in range(300)])


def test_pairs_and_models_are_those_of_the_tables(content, study):
    pairs, models = frame(content, "pairs"), frame(content, "models")
    names = study["zoo"]["name"]
    assert models["name"].tolist() == names.tolist()
    assert models["acc"].tolist() == study["zoo"]["acc"].tolist()
    scores = study["complementarity"]
    assert names[pairs["teacher"]].tolist() == scores["teacher"].tolist()
    for column in ("pos_flips", "pos_flips_se", "acc_difference", "kappa"):
        assert pairs[column].tolist() == scores[column].tolist()


def test_transfers_are_means_over_seeds_beside_their_control(content, study):
    found, names = frame(content, "transfers"), study["zoo"]["name"].to_numpy()
    pairs = frame(content, "pairs").iloc[found["pair"]]
    found = found.assign(teacher=names[pairs["teacher"]], student=names[pairs["student"]])
    assert set(found["method"]) == {"kl", "kl_dp", "kl_dp_unsup"}  # controls stand beside them
    assert len(found) == 3 * 20
    means = study["transfers"].groupby(["method", *PAIR])[["delta", "delta_se", "acc_after", "knowledge_gain"]].mean()
    for row in found.itertuples():
        of_row = means.loc[(row.method, row.teacher, row.student)]
        control = means.loc[("finetune" if row.method == "kl_dp" else "self", row.teacher, row.student), "delta"]
        assert (row.delta, row.delta_se) == pytest.approx((of_row["delta"], of_row["delta_se"]), abs=1e-12)
        assert (row.acc_after, row.knowledge_gain) == pytest.approx(tuple(of_row[["acc_after", "knowledge_gain"]]))
        assert (row.control_delta, row.beyond) == pytest.approx((control, of_row["delta"] - control))
        assert row.seeds == 2
    (self_,) = (control for control in content["controls"] if control["method"] == "self")
    once = study["transfers"].query("method == 'self'").drop_duplicates("key").groupby("student")
    for name in ("delta", "delta_se"):
        assert self_[name] == pytest.approx(once[name].mean().tolist())
    assert self_["seeds"] == [2] * 5


def test_a_pair_has_the_numbers_of_the_command(content, study):
    found, names = frame(content, "transfers"), study["zoo"]["name"].to_numpy()
    pairs = frame(content, "pairs")
    for pair in pairs.itertuples():
        rows = measured(study["transfers"], names[pair.student], names[pair.teacher]).set_index("method")
        here = found[found["pair"] == pair.Index].set_index("method")
        shown = ["delta", "delta_se", "beyond", "beyond_se", "transfer_rate", "seeds"]
        pd.testing.assert_frame_equal(here[shown], rows.loc[here.index, shown], check_dtype=False, rtol=1e-6)
        for control in content["controls"]:
            told = [control[name][pair.student] for name in ("delta", "delta_se", "seeds")]
            assert told == pytest.approx(rows.loc[control["method"], ["delta", "delta_se", "seeds"]].tolist())


def test_a_control_is_compared_over_the_same_seeds(study):
    some = {name: table.copy() for name, table in study.items()}
    tables.fail(some, (some["transfers"]["method"] == "self") & (some["transfers"]["seed"] == 1))
    made = explore.content(Tables.of(some), tables.EQUAL_WITHIN)
    found = frame(made, "transfers").query("method == 'kl'").reset_index(drop=True)
    rows = some["transfers"].query("seed == 0").pivot_table(index=PAIR, columns="method", values="delta")
    names = some["zoo"]["name"].to_numpy()
    pairs = frame(made, "pairs").iloc[found["pair"]]
    for i, pair in enumerate(zip(names[pairs["teacher"]], names[pairs["student"]], strict=True)):
        assert found["beyond"][i] == pytest.approx(rows.loc[pair, "kl"] - rows.loc[pair, "self"])
    assert made["words"]["failed"] == 5  # one training per student


def test_an_ensemble_has_no_control_for_nothing_is_trained(study):
    transfers = study["transfers"]
    mixed = {**study, "transfers": transfers.assign(trains=transfers["method"] != "kl")}
    made = explore.content(Tables.of(mixed), tables.EQUAL_WITHIN)
    found = frame(made, "transfers")
    assert made["ensembles"] == ["kl"]
    assert found.loc[found["method"] == "kl", ["control_delta", "beyond"]].isna().all(axis=None)
    assert found.loc[found["method"] != "kl", ["control_delta", "beyond"]].notna().all(axis=None)


def test_classes_are_those_where_the_teacher_leads_most(content, study):
    leads, scores = content["leads"], study["complementarity"]
    listed, many = unpacked(leads["listed"]), unpacked(leads["many"])
    ends = np.cumsum(listed)
    flips = {(row.teacher, row.student): np.asarray(row.flips_by_class) for row in scores.itertuples()}
    for pair, row in enumerate(scores.itertuples()):
        part = slice(ends[pair] - listed[pair], ends[pair])
        gained, lost = flips[row.teacher, row.student], flips[row.student, row.teacher]
        classes = unpacked(leads["class"])[part]
        assert set(classes) == set(np.flatnonzero(gained))
        assert (unpacked(leads["gained"])[part] == gained[classes]).all()
        assert (unpacked(leads["lost"])[part] == lost[classes]).all()
        lead = (gained - lost)[classes]
        assert (np.diff(lead) <= 0).all()
        assert many[pair] == (gained > lost).sum()


def test_without_lists_of_classes_there_are_none(study):
    without = {**study, "complementarity": study["complementarity"].assign(flips_by_class=None)}
    assert explore.content(Tables.of(without), 2.0)["leads"] is None


def test_a_part_of_many_pairs_has_those_with_a_transfer_and_says_so(study):
    done = study["transfers"]["teacher"].eq("model_4")
    few = {**study, "transfers": study["transfers"][done]}
    made = explore.content(Tables.of(few), 2.0, most=6)
    pairs = frame(made, "pairs")
    assert (len(pairs), made["words"]["scored"]) == (6, 20)
    assert (pairs["teacher"] == 4).sum() == 4
    assert len(frame(made, "transfers")) == 3 * 4


def test_a_page_that_would_be_too_large_holds_fewer_pairs(study, monkeypatch):
    whole = explore.render(Tables.of(study), "A study", 2.0)
    monkeypatch.setattr(explore, "MOST_BYTES", len(whole.encode()) - 500)
    smaller = explore.render(Tables.of(study), "A study", 2.0)
    assert len(smaller.encode()) <= len(whole.encode()) - 500
    assert 0 < data(smaller)["pairs"]["rows"] < 20


def data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_names_are_shown_and_never_run(study):
    hostile = "</script><script>alert(1)</script>"
    page = explore.render(Tables.of(study, class_names=(hostile,) * 10), f"A <study> {hostile}", 2.0)
    assert hostile not in page
    assert data(page)["classes"] == [hostile] * 10
    assert page.count("<script") == 6 + page.count("<\\/script")  # those within the library are in its strings
    assert "<link" not in page.partition("<script")[0]


def test_a_task_without_classes_is_told_in_its_own_words(tmp_path):
    folder = tables.write(tmp_path, tables.of_depth(tables.study(models=3, seeds=1)), tables.DEPTH)
    made = explore.content(Tables.read(folder), 0.02)
    assert made["leads"] is None
    told = json.dumps(
        [
            made["words"],
            [
                [c["key"], c["label"], c.get("unit")]
                for t in ("models", "pairs", "transfers")
                for c in made[t]["columns"]
            ],
        ]
    )
    assert not re.search(r"accura|[^_]image|percentage|\bacc_", told.replace("train_images", "")), told
    columns = {c["key"]: c for c in made["transfers"]["columns"] + made["pairs"]["columns"]}
    assert columns["delta"]["unit"] == "Δρ"
    assert columns["rho_after"]["unit"] == "(−1 to 1)"
    assert columns["pos_flips"]["unit"] == "points of correlation"
    assert (columns["delta"]["digits"], made["words"]["examples"]) == (4, "test frames")


def test_segmentation_is_told_in_mean_iou_and_its_classes_in_pixels():
    study, task = tables.scenes(), tables.SEGMENTATION.words
    made = explore.content(Tables.of(study, task=task, class_names=tables.THINGS), 2.0)
    columns = {c["key"]: c for table in ("transfers", "pairs", "models") for c in made[table]["columns"]}
    labels = [columns[key]["label"] for key in ("miou", "miou_difference", "miou_after", "pixel_flips")]
    assert labels == ["mean IoU", "mean IoU, teacher − student", "student's mean IoU after transfer", PIXELS]
    assert columns["miou"]["unit"] == "%"
    assert {columns[key]["unit"] for key in ("pixel_flips", "agreement", "double_fault")} == {"% of test pixels"}
    assert made["words"]["counted"] == "test pixels"
    assert made["classes"] == list(tables.THINGS)
    flips = study["complementarity"].iloc[0]["flips_by_class"]
    first = slice(0, unpacked(made["leads"]["listed"])[0])
    assert sorted(unpacked(made["leads"]["gained"])[first]) == sorted(flips[flips > 0])


@pytest.mark.parametrize("part", ["nothing finished", "nothing scored"])
def test_little_data_makes_a_page(study, part):
    little = {name: table.copy() for name, table in study.items()}
    if part == "nothing finished":
        tables.fail(little, little["transfers"]["seed"] >= 0)
    else:
        little |= {name: little[name][:0] for name in ("complementarity", "pairs", "transfers", "methods")}
    made = explore.content(Tables.of(little), 2.0)
    assert made["transfers"]["rows"] == 0
    assert made["models"]["rows"] == 5
    assert "nan" not in explore.render(Tables.of(little), "x", 2.0).partition("<script>")[0].lower()


def test_the_command_makes_the_page_from_any_tables(study, tmp_path):
    folder = tables.write(tmp_path / "tables", study)
    assert main(["explore", "--tables", str(folder), "--out", str(tmp_path / "e.html")]) == 0
    made = data((tmp_path / "e.html").read_text("utf-8"))
    assert made["pairs"]["rows"] == 20
    assert made["sizes"] == []  # not known from these tables


def test_a_missing_table_is_named(tmp_path, capsys):
    assert main(["explore", "--tables", str(tmp_path), "--out", str(tmp_path / "e.html")]) == 1
    assert "transfers.parquet: no such file" in capsys.readouterr().err
