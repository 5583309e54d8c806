"""The analysis from tables alone: what it finds, what it refuses, and what little it can work with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tables

from kt.analysis import design, prediction, recommend
from kt.analysis.analyse import analyse, as_table
from kt.analysis.effects import TOGETHER, independent
from kt.analysis.inputs import CLASSIFICATION, load, prepare
from kt.analysis.outcomes import Pairs, gather
from kt.analysis.prediction import TREES, ladder
from kt.cli import main
from kt.cli.analysis import plan_text, recommended_text
from kt.errors import KtError
from kt.tables import schema
from kt.tables.of_analysis import ANALYSIS


def zoo_of(models=10, seeds=2, seed=0, slope=0.6, methods=("kl_dp",)):
    """Transfers whose delta follows the accuracy difference and the student's size."""
    rng = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(models)]
    acc, size = rng.normal(80, 4, models), rng.normal(7, 0.6, models)
    zoo = pd.DataFrame(
        {
            "name": names, "kind": np.resize(["cnn", "transformer"], models), "family": np.resize(list("abc"), models),
            "params": (10**size).astype(int), "acc": acc, "year": rng.integers(2012, 2024, models),
        }
    )  # fmt: skip
    rows, scores = [], []
    for t in range(models):
        for s in range(models):
            if s == t:
                continue
            gap = acc[t] - acc[s]
            flips = max(gap, 0) + rng.gamma(3, 1)
            scores.append({"teacher": names[t], "student": names[s], "acc_difference": gap, "pos_flips": flips,
                           "neg_flips": flips - gap, "kappa": rng.normal()})  # fmt: skip
            rows += [
                {"teacher": names[t], "student": names[s], "method": method, "seed": seed, "seconds": 360.0,
                 "delta": slope * gap + 3 * (size[s] - 7) + rng.normal(0, 0.3)}
                for method in methods for seed in range(seeds)
            ]  # fmt: skip
    return pd.DataFrame(rows), zoo, pd.DataFrame(scores)


def quick(*frames):
    return analyse(prepare(*frames), bootstrap=50, draws=199)


def check_tables(result):
    for name, frame in result.tables.items():
        assert as_table(name, frame).schema == schema.arrow_schema(name)
    assert "nan" not in result.summary
    assert "None" not in result.summary
    assert "inf" not in result.summary.replace("information", "")
    return result.summary


def test_planted_properties_are_found_and_the_null_is_not():
    result = analyse(prepare(*zoo_of(14)), bootstrap=50, draws=999)
    rows = result.tables["effects"].set_index(["given", "property"])
    assert rows.loc[("nothing", "acc_difference"), "p_bh"] < 0.05
    assert rows.loc[("acc_difference", "student_params" if "student_params" in rows.loc["nothing"].index
                     else "student_log10_params"), "p_bh"] < 0.05  # fmt: skip
    assert rows.loc[("acc_difference", "teacher_year"), "p_bh"] > 0.05
    effect = rows.loc[("nothing", "acc_difference")]
    assert effect["low"] < 0.6 * effect["per"] < effect["high"]
    assert effect["boot_low"] < effect["effect"] < effect["boot_high"]
    assert effect["se"] > effect["se_iid"]
    check_tables(result)


def test_a_property_that_is_known_of_few_models_breaks_no_fold():
    transfers, zoo, scores = zoo_of(8)
    zoo["year"] = zoo["year"].where(zoo["name"].isin(["m0", "m1"]))  # unknown of all others, where these are held out
    result = quick(transfers, zoo, scores)
    assert TREES in set(result.tables["ladder"]["rung"])
    check_tables(result)


def test_no_regression_contains_flips_both_ways_and_the_accuracy_difference():
    frames = zoo_of(40, seeds=1)
    result = quick(frames[0], frames[1].drop(columns=["kind", "family", "year"]), frames[2])
    rows = result.tables["effects"]
    assert "neg_flips" not in set(rows["property"])
    together = set(rows.loc[rows["given"] == TOGETHER, "property"])
    assert {"acc_difference", "pos_flips"} <= together
    assert not {"teacher_acc", "student_acc"} <= together  # they make up the accuracy difference
    assert "No regression contains all three" in result.summary


def test_columns_that_others_determine_are_left_out():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    assert independent(pd.DataFrame({"a": a, "b": b, "c": a - b, "d": 2 + 3 * a})) == ["a", "b"]


def test_held_out_models_are_never_learned_from():
    outcomes = gather(prepare(*zoo_of(9)))[0]
    for _, train, tests in prediction._folds(outcomes, np.random.default_rng(0)):
        seen = set(outcomes.teachers[train]) | set(outcomes.students[train])
        assert not seen & set(outcomes.students[tests["students"]])
        assert set(outcomes.teachers[tests["students"]]) <= seen
        assert not seen & set(outcomes.teachers[tests["teachers"]])
        assert set(outcomes.students[tests["teachers"]]) <= seen
        if "both" in tests:
            assert not seen & set(outcomes.teachers[tests["both"]]) | seen & set(outcomes.students[tests["both"]])


def test_the_ladder_gives_a_constant_nothing_and_the_planted_gap_its_due():
    outcomes = gather(prepare(*zoo_of(12, slope=2.0)))[0]
    scores = prediction.score(outcomes, prediction.hold_out(outcomes, np.random.default_rng(0)))
    of_students = scores[scores["scheme"] == "students"].set_index("rung")
    assert of_students.loc["constant", ["r2", "tau"]].tolist() == [0, 0]
    assert of_students.loc["accuracy gap", "r2"] > 0.6
    assert of_students.loc["accuracy gap", "tau"] > 0.9
    assert of_students.loc["accuracy gap", "regret_3"] < 0.2 < of_students.loc["constant", "regret_1"]
    assert 0 < of_students.loc["accuracy gap", "hours_saved_3"] < of_students.loc["accuracy gap", "hours_saved_1"] < 100
    assert of_students["hours"].iloc[0] == pytest.approx(12 * 11 * 2 / 10)
    assert of_students["r2_ceiling"].iloc[0] == pytest.approx(1, abs=0.02)
    assert TREES in of_students.index


def test_a_shortlist_saves_hours_only_where_a_student_has_more_teachers_than_it_lists():
    made = pd.DataFrame({"repeat": 0, "fold": 0, "student": ["a"] * 3 + ["b"] * 4, "hours": 1.0})
    made["delta"] = made["predicted"] = [1.0, 2, 3, 4, 3, 2, 1]
    assert prediction._ranking(made)["hours_saved_3"] == pytest.approx(25)  # of b's four teachers; a has but three
    few = prediction._ranking(made[made["student"] == "a"])
    assert np.isnan(few["hours_saved_3"])
    assert np.isnan(few["regret_3"])
    assert few["hours_saved_1"] == pytest.approx(100 * 2 / 3)


def test_static_rankers_stand_on_the_ladder_and_rank_teachers_alike_for_every_student():
    outcomes = gather(prepare(*zoo_of(12, slope=2.0)))[0]
    held = prediction.hold_out(outcomes, np.random.default_rng(0))
    scores = prediction.score(outcomes, held)
    of_students = scores[scores["scheme"] == "students"].set_index("rung")
    assert of_students.loc["teacher accuracy", "tau"] > 0.9 > of_students.loc["teacher size", "tau"]
    assert of_students.loc["teacher accuracy", "r2"] < of_students.loc["accuracy gap", "r2"]  # it knows no student
    made = held.predictions.query("rung == 'teacher accuracy' and scheme == 'students' and repeat == 0")
    for _, fold in made.groupby("fold"):
        by_teacher = pd.Series(fold["predicted"].to_numpy(), outcomes.teachers[fold["row"]]).groupby(level=0)
        assert by_teacher.nunique().max() == 1
    _, zoo, _ = frames = zoo_of(9)
    zoo["params"] = 2 * np.arange(10, 19)  # sizes that span no factor of ten are no logarithms
    assert "teacher size" in ladder(gather(prepare(*frames))[0])
    assert "teacher size" not in ladder(gather(prepare(frames[0], zoo.assign(params=7), frames[2]))[0])


def test_the_best_of_k_tied_teachers_is_what_chance_would_take():
    delta = np.array([1.0, 2.0, 3.0, 4.0])
    assert prediction._best_taken(delta, np.zeros(4), 1) == 2.5
    assert prediction._best_taken(delta, np.zeros(4), 3) == pytest.approx((3 + 4 + 4 + 4) / 4)
    assert prediction._best_taken(delta, np.array([3.0, 2, 1, 0]), 2) == 2


def truth_share(truth):
    return np.mean([value > 0 for value in truth.values()])


def test_the_ceiling_is_what_seeds_leave():
    transfers, zoo, scores = zoo_of(20)
    truth = {name: 10.0 * (name > "m4") for name in zoo["name"]}
    noise = np.random.default_rng(0).normal(size=len(transfers))
    transfers["delta"] = noise
    assert gather(prepare(transfers, zoo, scores))[0].ceiling < 0.2
    transfers["delta"] = transfers["student"].map(truth) + noise
    spread = 25 * 4 * truth_share(truth) * (1 - truth_share(truth))
    assert gather(prepare(transfers, zoo, scores))[0].ceiling == pytest.approx(spread / (spread + 0.5), abs=0.005)
    one_seed = transfers[transfers["seed"] == 0]
    assert np.isnan(gather(prepare(one_seed, zoo, scores))[0].ceiling)


def test_the_sentences_follow_when_the_effect_is_inverted():
    up, down = (quick(*zoo_of(12, slope=slope)).summary for slope in (2.0, -2.0))
    assert "`acc_difference` +" in up
    assert "`acc_difference` −" in down


@pytest.mark.parametrize("models", [2, 3, 4])
def test_few_models_are_described_and_no_more(models):
    text = check_tables(quick(*zoo_of(models)))
    if models < 4:
        assert f"with {models} models every pair shares a model with every other" in text


def test_all_units_failed():
    transfers, zoo, scores = zoo_of(5)
    text = check_tables(quick(transfers.assign(status="failed"), zoo, scores))
    assert "No transfer has finished" in text
    assert "40 trainings failed" in text


def test_without_complementarity_accuracies_of_the_zoo_stand_in():
    transfers, zoo, _ = zoo_of(8)
    result = quick(transfers, zoo)
    assert "there is no table `complementarity`" in check_tables(result)
    assert "acc_difference" in set(result.tables["effects"]["property"])


def test_names_alone_are_enough_of_a_zoo():
    transfers, zoo, _ = zoo_of(6, seeds=1)
    text = check_tables(quick(transfers[["teacher", "student", "method", "delta"]], zoo[["name"]]))
    assert "neither `acc` in the zoo nor `acc_difference` is known" in text
    assert "every pair has one seed only" in text


def test_constant_and_unknown_columns_are_named_and_do_no_harm():
    transfers, zoo, scores = zoo_of(8)
    zoo = zoo.assign(family="one", kind=None, year=np.nan, params=5, acc=80.0)
    scores = scores.assign(acc_difference=np.nan, pos_flips=1.0, kappa=np.nan, neg_flips=None, text="x")
    text = check_tables(quick(transfers, zoo, scores))
    assert "unknown for all pairs: `acc_difference`" in text
    assert "the same for all pairs: `pos_flips`" in text


def test_some_nulls_everywhere():
    transfers, zoo, scores = zoo_of(10)
    rng = np.random.default_rng(1)
    for frame in (zoo, scores):
        for column in frame.columns.difference(["name", "teacher", "student"]):
            frame[column] = frame[column].astype(object).where(rng.random(len(frame)) > 0.3, None)
            if column not in ("kind", "family"):
                frame[column] = pd.to_numeric(frame[column])
    transfers["delta"] = transfers["delta"].where(rng.random(len(transfers)) > 0.3)
    transfers["seconds"] = np.nan
    check_tables(quick(transfers, zoo, scores))


def test_only_controls_and_deltas_that_never_differ():
    transfers, zoo, scores = zoo_of(5)
    assert "only controls finished" in check_tables(quick(transfers.assign(method="self"), zoo, scores))
    check_tables(quick(transfers.assign(delta=1.0), zoo, scores))


def test_methods_with_several_teachers_are_kept_apart_and_compared_with_single_ones():
    transfers, zoo, scores = zoo_of(5, seeds=1)
    more = pd.DataFrame(
        [{"teacher": None, "teachers": ["m0", "m1"], "student": s, "method": "parallel", "seed": 0, "delta": 4.0}
         for s in ("m2", "m3")]
    )  # fmt: skip
    result = quick(pd.concat([transfers, more], ignore_index=True), zoo, scores)
    row = result.tables["several"].iloc[0]
    single = transfers[transfers["teacher"].isin(["m0", "m1"]) & transfers["student"].isin(["m2", "m3"])]
    assert (row["teachers"], row["students"], row["delta"], row["success"]) == (2, 2, 4.0, 100.0)
    assert row["single_mean"] == pytest.approx(single["delta"].mean())
    assert row["single_best"] == pytest.approx(single.groupby("student")["delta"].max().mean())
    assert "parallel" not in set(result.tables["groups"]["method"])
    check_tables(result)


def test_infinite_numbers_of_transfers_are_unknown():
    transfers, zoo, scores = zoo_of(3, seeds=1)
    found = prepare(transfers.assign(n=np.inf, delta_se=-np.inf), zoo, scores).transfers
    assert found[["n", "delta_se"]].isna().all().all()
    assert found["delta"].notna().all()


def test_groups_hold_the_same_numbers_as_the_rows():
    transfers, zoo, scores = zoo_of(6, seeds=2)
    groups = quick(transfers, zoo, scores).tables["groups"].set_index(["grouping", "level"])
    pairs = transfers.groupby(["teacher", "student"])["delta"].mean()
    assert groups.loc[("all", "all"), "delta"] == pytest.approx(pairs.mean())
    assert groups.loc[("all", "all"), "success"] == pytest.approx(100 * (pairs > 0).mean())
    weaker = scores.set_index(["teacher", "student"])["acc_difference"] < -2
    assert groups.loc[("teacher", "weaker"), "delta"] == pytest.approx(pairs[weaker[weaker].index].mean())
    bins = groups.loc["accuracy difference"]
    assert bins["pairs"].sum() == 30
    assert (bins["top_quartile"] >= bins["delta"]).all()


def test_our_own_tables_are_analysed_by_the_command(tmp_path, capsys):
    folder = tables.write(tmp_path / "tables", tables.study(models=5, effects={"kl_dp": tables.EFFECTS["kl_dp"]}))
    options = [x for n in ("transfers", "zoo", "complementarity") for x in (f"--{n}", str(folder / f"{n}.parquet"))]
    assert main(["analyse", *options, "--out", str(tmp_path / "out"), "--bootstrap", "50"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "summary.md", *(f"{name}.{kind}" for name in ANALYSIS for kind in ("parquet", "csv"))
    }  # fmt: skip
    assert schema.read(tmp_path / "out/groups.parquet", "groups").num_rows > 0


def test_recommendations_rank_teachers_for_students_with_and_without_transfers(tmp_path, capsys):
    transfers, zoo, scores = zoo_of(12, slope=2.0)
    inputs = prepare(transfers[transfers["student"] != "m3"], zoo, scores)
    rows = recommend.recommend(inputs, "m3")
    assert len(rows) == 11
    assert rows["measured"].isna().all()
    truth = transfers[transfers["student"] == "m3"].groupby("teacher")["delta"].mean()
    assert np.corrcoef(rows["predicted"], truth[rows["teacher"]])[0, 1] > 0.9
    assert (rows["low"] < rows["high"]).all()
    assert rows["p_harm"].between(0, 1).all()
    assert rows["p_harm"].is_monotonic_increasing
    text = recommended_text(rows, "m3", 0.8, 5, CLASSIFICATION)
    assert "m3, not measured yet: predicted transfer delta in percentage points" in text
    assert "P(delta < 0)" in text
    assert "… and 6 more" in text
    assert "cannot tell" not in text
    known = recommend.recommend(prepare(transfers, zoo, scores), "m3")
    assert known.set_index("teacher")["measured"][truth.index].tolist() == pytest.approx(truth.tolist())
    assert known["predicted"].isna().all()
    five, zoo, scores = zoo_of(6, slope=2.0)
    few = recommend.recommend(prepare(five[~five["student"].isin(["m0", "m1", "m2"])], zoo, scores), "m0", level=0.9)
    assert np.isinf(few["low"]).all()
    assert "too few students" in recommended_text(few, "m0", 0.9, 5, CLASSIFICATION)


def test_what_is_measured_ranks_first_as_measured_beside_its_control():
    transfers, zoo, scores = zoo_of(12, slope=2.0)
    left = transfers[(transfers["student"] != "m3") | transfers["teacher"].isin(["m0", "m7"])]
    left = pd.concat([left, left.assign(method="self", delta=0.25)], ignore_index=True)
    rows = recommend.recommend(prepare(left, zoo, scores), "m3")
    means = transfers[transfers["student"] == "m3"].groupby("teacher")["delta"].mean()[["m0", "m7"]].sort_values()
    assert rows["teacher"].head(2).tolist() == means.index[::-1].tolist()
    assert rows["measured"].head(2).tolist() == pytest.approx(means.tolist()[::-1])
    assert (rows["measured"] - rows["beyond"]).head(2).tolist() == pytest.approx([0.25, 0.25])
    assert rows["measured"][2:].isna().all()
    assert rows["predicted"].head(2).isna().all()
    assert rows["predicted"][2:].is_monotonic_decreasing
    text = recommended_text(rows, "m3", 0.8, 5, CLASSIFICATION)
    assert text.index("m3, measured:") < text.index("m3, not measured yet:")
    assert "over self" in text


def test_a_method_does_not_change_the_numbers_of_another():
    inputs = prepare(*zoo_of(8, slope=2.0, methods=("a", "kl_dp")))
    rows = recommend.recommend(inputs, "m3")
    alone = recommend.recommend(inputs, "m3", "kl_dp")
    pd.testing.assert_frame_equal(rows[rows["method"] == "kl_dp"].reset_index(drop=True), alone)


@pytest.mark.parametrize(
    ("models", "seed", "why"),
    [
        (3, 0, "fewer than 4 models took part"),
        (6, 1, "on students left out of the fit, no predictor beats the average gain"),
        (6, 2, "the best predictor gives all of these teachers the same"),
    ],
)
def test_where_the_pairs_do_not_tell_nothing_is_predicted_and_the_way_out_is_named(models, seed, why):
    transfers, zoo, scores = zoo_of(models)
    transfers["delta"] = np.random.default_rng(seed).normal(size=len(transfers))
    left = transfers[(transfers["student"] != "m1") | (transfers["teacher"] == "m2")]
    inputs = prepare(left, zoo[["name", "acc"]], scores[["teacher", "student", "acc_difference"]])
    rows = recommend.recommend(inputs, "m1")
    assert rows["teacher"].iloc[0] == "m2"
    assert rows[["predicted", "low", "high", "p_harm"]].isna().all(axis=None)
    lines = recommended_text(rows, "m1", 0.8, 5, CLASSIFICATION).splitlines()
    assert (
        f"kl_dp: {models - 2} teacher{'s' * (models > 3)} not measured: cannot tell from these pairs, since {why}"
        in lines
    )
    assert "`kt next --budget HOURS --method kl_dp`" in lines[-1]
    assert "nan" not in " ".join(lines)


def test_a_predictor_that_gives_all_teachers_the_same_tells_nothing():
    transfers, zoo, scores = zoo_of(10)
    advisor = recommend.Advisor(prepare(transfers[transfers["student"] != "m3"], zoo, scores))
    advisor.judged["kl_dp"] = recommend.Judged("student mean", 0.5, np.zeros(3), np.arange(3))
    advisor._predict["kl_dp"] = lambda pairs: np.full(len(pairs.teachers), 1.5)
    rows = advisor.rank("m3")
    assert rows["predicted"].isna().all()
    assert recommend.open_question(rows) == "the best predictor gives all of these teachers the same"


def test_the_judgement_of_an_analysis_is_taken_where_it_is_about_the_same_pairs():
    transfers, zoo, scores = zoo_of(8, slope=2.0)
    inputs, made = prepare(transfers, zoo, scores), quick(transfers, zoo, scores)
    outcomes = gather(inputs, everyone=True)[0]
    found = recommend.judge(outcomes, made.tables)
    ladder = made.tables["ladder"].query("scheme == 'students'").set_index("rung")["r2"]
    assert found.r2 == ladder[found.rung] == ladder.max()
    assert len(found.errors) == len(made.tables["predictions"])
    anew = recommend.judge(outcomes)
    assert anew.r2 != found.r2  # other folds
    more = gather(prepare(*zoo_of(8, slope=2.0, seed=1)), everyone=True)[0]
    assert recommend.judge(more, made.tables).r2 == recommend.judge(more).r2
    part = gather(prepare(transfers[transfers["student"] != "m1"], zoo, scores), everyone=True)[0]
    assert recommend.judge(part, made.tables).r2 == recommend.judge(part).r2


def test_recommended_intervals_cover_new_students_about_as_often_as_they_say():
    covered = []
    for seed in range(6):
        transfers, zoo, scores = zoo_of(10, seeds=1, seed=seed)
        zoo = zoo.drop(columns=["kind", "family", "year"])
        inputs = prepare(transfers[transfers["student"] != "m9"], zoo, scores)
        rows = recommend.recommend(inputs, "m9", level=0.8).set_index("teacher")
        truth = transfers[transfers["student"] == "m9"].set_index("teacher")["delta"][rows.index]
        covered.append(((rows["low"] < truth) & (truth < rows["high"])).mean())
    assert np.mean(covered) > 0.6


def test_next_keeps_to_its_budget_and_takes_what_teaches_most():
    transfers, zoo, scores = zoo_of(8, seeds=1)
    rng = np.random.default_rng(0)
    done = transfers[(rng.random(len(transfers)) < 0.4) & (transfers["student"] != "m7")]
    plan = design.choose(prepare(done, zoo, scores), 1.05)
    assert len(plan.pairs) == 10  # 0.1 hours each
    assert plan.hours == pytest.approx(1.0)
    measured = set(zip(done["teacher"], done["student"], strict=True))
    chosen = list(zip(plan.pairs["teacher"], plan.pairs["student"], strict=True))
    assert not measured & set(chosen)
    assert len(set(chosen)) == 10
    assert "m7" in {student for _, student in chosen[:2]}  # nothing is known of it as a student
    assert plan.pairs["error"].is_monotonic_decreasing
    assert plan.error > plan.pairs["error"].iloc[0]
    assert "10 pairs of" in plan_text(plan, CLASSIFICATION)


def test_the_form_over_pairs_is_that_of_rows_written_out():
    rng = np.random.default_rng(0)
    outcomes = gather(prepare(*zoo_of(5)), everyone=True)[0]
    pairs = Pairs(outcomes.teachers, outcomes.students, outcomes.x)
    x = rng.normal(size=(len(outcomes), 3))
    rows = np.array([design.row_of(a, t, s, 5) for a, t, s in zip(x, pairs.teachers, pairs.students, strict=True)])
    matrix = rng.normal(size=(13, 13))
    matrix = matrix @ matrix.T
    assert design.form(matrix, x, pairs, 3, 5) == pytest.approx(np.einsum("ni,ij,nj->n", rows, matrix, rows))
    assert design.products(x, pairs, 5) == pytest.approx(rows.T @ rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transfers": lambda f: f.rename(columns={"delta": "dleta"})},
            "column 'delta' is missing; did you mean 'dleta'",
        ),
        ({"transfers": lambda f: f.assign(delta="much")}, "column 'delta' must hold numbers"),
        ({"transfers": lambda f: f.replace({"student": {"m1": "m11"}})}, "unknown model 'm11'"),
        ({"transfers": lambda f: f.assign(teacher="m1", student="m1")}, "'m1' is its own teacher"),
        ({"zoo": lambda f: pd.concat([f, f])}, "the name 'm0' is there twice"),
        ({"complementarity": lambda f: pd.concat([f, f])}, "a pair has several rows"),
        ({"complementarity": lambda f: f.drop(columns="student")}, "column 'student' is missing"),
    ],
)
def test_bad_input_is_one_line(tmp_path, change, message):
    frames = dict(zip(("transfers", "zoo", "complementarity"), zoo_of(4), strict=True))
    for name, frame in frames.items():
        change.get(name, lambda f: f)(frame).to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(KtError, match=message) as error:
        load(*(tmp_path / f"{name}.csv" for name in frames))
    assert "\n" not in str(error.value)


def test_ensembles_are_described_but_never_recommended():
    transfers, zoo, scores = zoo_of(6, seeds=1, methods=("kl_dp", "ensemble_mean"))
    transfers["trains"] = transfers["method"] != "ensemble_mean"
    transfers.loc[~transfers["trains"], "delta"] += 50
    inputs = prepare(transfers[transfers["teacher"] != "m0"], zoo, scores)
    assert set(recommend.recommend(inputs, "m1")["method"]) == {"kl_dp"}
    assert design.choose(inputs, 1.0).method == "kl_dp"
    assert "- `ensemble_mean`: +" in quick(transfers, zoo, scores).summary


def test_controls_that_name_no_teacher_are_no_pairs():
    transfers, zoo, scores = zoo_of(5, seeds=1)
    alone = [{"teacher": None, "student": f"m{i}", "method": "self", "seed": 0, "delta": 0.1} for i in range(5)]
    text = check_tables(quick(pd.concat([transfers, pd.DataFrame(alone)]), zoo, scores))
    assert "Gains of `self` without a teacher" in text
    assert "with several teachers" not in text


def test_advice_refuses_what_it_does_not_know(tmp_path):
    inputs = prepare(*zoo_of(5))
    with pytest.raises(KtError, match="unknown model 'm9'"):
        recommend.recommend(inputs, "m9")
    with pytest.raises(KtError, match="unknown method 'kl'"):
        recommend.recommend(inputs, "m1", "kl")
    with pytest.raises(KtError, match=r"--level: 1\.5"):
        recommend.recommend(inputs, "m1", level=1.5)
    with pytest.raises(KtError, match="nothing is left to transfer"):
        design.choose(inputs, 1.0)
    transfers, zoo, scores = zoo_of(5)
    part = transfers[transfers["teacher"] != "m0"]
    with pytest.raises(KtError, match=r"one transfer takes 0\.1 hours at least"):
        design.choose(prepare(part, zoo, scores), 0.05)
    with pytest.raises(KtError, match="must be above 0"):
        design.choose(prepare(part, zoo, scores), -1)
    with pytest.raises(KtError, match="no `seconds`"):
        design.choose(prepare(part.drop(columns="seconds"), zoo, scores), 1)
    missing = tmp_path / "none.parquet"
    with pytest.raises(KtError, match="no such file"):
        load(missing, missing)
