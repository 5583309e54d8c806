"""The answer of a study: short, honest for every outcome, and in the words of its task."""

import re

import numpy as np
import pandas as pd
import pytest
import tables
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kt.analysis.answer import answer
from kt.analysis.deltas import furthest, gains
from kt.analysis.inputs import CLASSIFICATION, prepare
from kt.tables.of_analysis import ANALYSIS
from kt.tasks.task import Metric, Words

LABELS = {"kl": False, "other": False, "self": False, "kl_dp": True, "xekl": True, "finetune": True}
CONTROLS = {"self", "finetune"}
NEGATIONS = r"\b(no|not|none|nothing|never|neither|nor|cannot|unknown)\b"
DEPTH = Words("depth", Metric("rho", "correlation", "", "points of correlation", "ρ"), "frame", False)


def made(effects, models=8, seeds=2, noise=0.3, failed=0.0, scored=True, task=CLASSIFICATION, n=500):
    """Inputs of an analysis in which every method has its effect; a pair of intercept and slope over the gap."""
    rng = np.random.default_rng(0)
    accuracy = dict(zip((f"m{i}" for i in range(models)), np.linspace(70, 90, models), strict=True))
    pairs = [(t, s) for t in accuracy for s in accuracy if t != s]
    rows = []
    for method, (level, slope) in effects.items():
        shared: dict[tuple[str, int], float] = {}
        for teacher, student in pairs:
            for seed in range(seeds):
                delta = level + slope * (accuracy[teacher] - accuracy[student]) + rng.normal(0, noise)
                if method in CONTROLS:
                    delta = shared.setdefault((student, seed), delta)
                rows.append(
                    {"teacher": teacher, "student": student, "method": method, "seed": seed, "delta": delta,
                     "control": method in CONTROLS, "uses_labels": LABELS[method], "n": n,
                     "key": f"{method}-{'' if method in CONTROLS else teacher}-{student}-{seed}"}
                )  # fmt: skip
    transfers = pd.DataFrame(rows, columns=["teacher", "student", "method", "seed", "delta", "control", "uses_labels",
                                            "n", "key"])  # fmt: skip
    transfers.loc[rng.random(len(transfers)) < failed, "delta"] = np.nan
    zoo = pd.DataFrame({"name": list(accuracy), **({"acc": list(accuracy.values())} if scored else {})})
    scores = pd.DataFrame(pairs, columns=["teacher", "student"]).assign(pos_flips=8.0)
    return prepare(transfers, zoo, scores if scored else None, task)


def nothing():
    """Analysis tables without rows."""
    return {name: pd.DataFrame(columns=[column.name for column in columns]) for name, columns in ANALYSIS.items()}


def of(effects, analysis=None, **options):
    return answer(made(effects, **options), analysis or nothing(), 2.0)


def check(found):
    """What holds for every answer."""
    assert len(found.headline.split()) <= 25, found.headline
    assert 3 <= len(found.bullets) <= 5, found.bullets
    for text in (found.headline, *found.bullets):
        assert not re.search(r"\b(nan|None|inf)\b", text), text
        for sentence in re.split(r"(?<=[.!?]) ", text):
            assert len(re.findall(NEGATIONS, sentence.replace("± unknown", ""), re.I)) <= 1, sentence
    for bullet in found.bullets[:-1]:  # a number stands with its error, and with what it rests on
        assert bullet.count("pair") + bullet.count("model") >= 1 or not re.search(r"\d", bullet), bullet
        assert not re.search(r"[+−]\d+\.\d+(?![\d])(?! ±)", bullet), bullet


EFFECT = st.tuples(st.floats(-6, 6), st.floats(-1, 1))


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    effects=st.dictionaries(st.sampled_from(sorted(LABELS)), EFFECT),
    models=st.integers(2, 7),
    seeds=st.integers(1, 2),
    failed=st.sampled_from([0.0, 0.5, 1.0]),
    scored=st.booleans(),
    noise=st.sampled_from([0.0, 0.3, 5.0]),
)
def test_every_answer_is_short_plain_and_claims_no_more_than_the_tables(effects, models, seeds, failed, scored, noise):
    inputs = made(effects, models, seeds, noise, failed, scored)
    found = answer(inputs, nothing(), 2.0)
    check(found)
    best = furthest(gains(inputs.transfers, inputs.scores, 2.0))
    if re.search(r"Teachers (clearly )?(help|limit)", found.headline):
        assert best is not None
        assert f"`{best.method}`" in found.headline
        assert ("help" in found.headline) == (best.own.sign > 0)
    elif best is not None:
        assert "too few" in found.headline


PLANTED = {
    "all null": (
        {"kl": (0, 0), "kl_dp": (0, 0), "self": (0, 0), "finetune": (0, 0)},
        "Teachers gave no clear benefit: every method is too close to its control to tell.",
    ),
    "null and harm": (
        {"kl": (0, 0), "kl_dp": (-2, 0), "self": (0, 0), "finetune": (0, 0)},
        "Teachers gave no clear benefit: every method is too close to its control to tell, or below it.",
    ),
    "only controls gain": ({"kl": (0, 0), "kl_dp": (1, 0), "self": (2, 0), "finetune": (4, 0)}, "Teaching hurts here"),
    "one works": ({"kl": (3, 0), "other": (0, 0), "self": (0, 0)}, "Teachers help: `kl` gains 3."),
    "only without labels": (
        {"kl": (3, 0), "kl_dp": (4, 0), "self": (0, 0), "finetune": (5, 0)},
        "Teachers clearly help only without labels: `kl` gains",
    ),
    "only with labels": (
        {"kl": (0, 0), "kl_dp": (5, 0), "self": (0, 0), "finetune": (3, 0)},
        "Teachers clearly help only with labels: `kl_dp` gains",
    ),
    "both": (
        {"kl": (3, 0), "kl_dp": (5, 0), "self": (0, 0), "finetune": (3, 0)},
        "Teachers help, with labels and without: `kl` gains",
    ),
    "less harm": ({"kl": (-3, 0), "self": (-6, 0)}, "Teachers limit losses"),
    "no control": ({"kl": (3, 0)}, "Whether teachers help is open"),
    "only controls": ({"self": (3, 0)}, "Only controls finished"),
    "nothing": ({}, "No transfer has finished"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_headline_follows_the_planted_effect(name):
    effects, start = PLANTED[name]
    found = of(effects)
    check(found)
    assert found.headline.startswith(start)


def test_the_control_is_named_where_a_method_with_labels_falls_behind():
    found = of({"kl": (3, 0), "kl_dp": (4, 0), "self": (0, 0), "finetune": (5, 0)})
    assert found.headline.endswith("with labels, none clearly beats fine-tuning.")
    assert re.search(
        r"^Of 2 methods, 1 \(`kl`\) gains clearly more than its control and 1 \(`kl_dp`\) gains clearly less\."
        r" The best, `kl`, differs from `self` by \+3\.\d\d ± 0\.\d\d percentage points \(56 pairs\)\.$",
        found.bullets[0],
    )


def test_weaker_teachers_are_told_from_others():
    found = of({"kl": (2, 0.5), "self": (0, 0)})
    assert found.headline.startswith("Teachers help")
    assert "weaker than the student by more than 2 percentage points, no method clearly gains" in found.bullets[1]
    assert "`kl` still gains more than `self`: by +2.9" in of({"kl": (3, 0), "self": (0, 0)}).bullets[1]
    unknown = of({"kl": (3, 0), "self": (0, 0)}, scored=False)
    assert unknown.bullets[1] == "Which teachers are weaker is unknown, for lack of the models' accuracy."
    same = answer(made({"kl": (3, 0), "self": (0, 0)}), nothing(), 50.0)
    assert same.bullets[1].startswith("No finished pair has a teacher that is weaker")


def test_few_models_and_one_seed_are_said():
    few = of({"kl": (3, 0), "self": (0, 0)}, models=3, seeds=1)
    assert few.headline == "Only 3 models took part, too few to tell whether teachers help."
    assert "take all numbers as a description" in few.bullets[-1]
    assert "With one seed, its chance is part of every number" in few.bullets[-1]
    some = of({"kl": (3, 0), "self": (0, 0)})
    assert "56 ordered pairs of 8 models, 2 seeds and 500 test images" in some.bullets[-1]
    assert "only large effects" in some.bullets[-1]
    many = of({"kl": (3, 0), "self": (0, 0)}, models=20, seeds=2)
    assert "With" not in many.bullets[-1]


def test_failures_are_counted():
    inputs = made({"kl": (3, 0), "self": (0, 0)})
    lost = inputs.transfers.assign(delta=inputs.transfers["delta"].where(inputs.transfers["method"] == "kl"))
    found = answer(prepare(lost, inputs.zoo.reset_index(), inputs.scores), nothing(), 2.0)
    assert "16 trainings failed and are left out" in found.bullets[-1]  # one per student and seed
    assert "`kl` gains" not in found.headline


def test_without_flags_of_labels_the_control_that_gains_most_must_be_beaten():
    inputs = made({"kl": (3, 0), "self": (0, 0), "finetune": (5, 0)})
    plain = prepare(inputs.transfers.drop(columns="uses_labels"), inputs.zoo.reset_index(), inputs.scores)
    assert answer(inputs, nothing(), 2.0).headline.startswith("Teachers help")
    assert answer(plain, nothing(), 2.0).headline.startswith("Teaching hurts")


def test_properties_and_predictions_are_those_of_the_analysis():
    study = tables.study(models=8, seeds=1, effects={"kl": lambda gap: gap + 4, "self": lambda gap: 0.0}, noise=0.1)
    inputs = prepare(study["transfers"], study["zoo"], study["complementarity"])
    analysis = dict(tables.analysed(study).tables)
    planted = analysis["effects"]["property"] == "acc_difference"
    analysis["effects"] = analysis["effects"].assign(p_bh=(~planted).astype(float))
    found = answer(inputs, analysis, 2.0)
    check(found)
    assert re.search(
        r"properties of the two models, 1 clearly correlates with the gain of `kl`: the accuracy difference"
        r" \(\+\d+\.\d\d ± \d\.\d\d\), in percentage points per standard deviation \(56 pairs\)",
        found.bullets[2],
    )
    assert re.search(r"^For students left out of the fit, \d+ % of the variance of the gain of `kl`", found.bullets[3])
    analysis["effects"] = analysis["effects"].assign(p_bh=1.0)
    analysis["ladder"] = analysis["ladder"].assign(r2=-0.1)
    none = answer(inputs, analysis, 2.0)
    check(none)
    assert "none clearly correlates with the gain of `kl`" in none.bullets[2]
    assert "no predictor beats the average gain of `kl` (8 students, 56 pairs)" in none.bullets[3]


@pytest.mark.parametrize("effects", [effects for effects, _ in PLANTED.values()])
def test_a_task_of_its_own_is_told_in_its_own_words(effects):
    small = {method: (level / 100, slope / 100) for method, (level, slope) in effects.items()}
    found = of(small, task=DEPTH, noise=0.001)
    check(found)
    text = " ".join((found.headline, *found.bullets))
    assert not re.search(r"accura|image|percent|class", text)
    if "Teachers help" in found.headline or "clearly help" in found.headline:
        assert re.search(r"gains 0\.0\d{3} ± 0\.0\d{3} points of correlation", found.headline)
