"""Adaptive pairs beside static rules: regret of the best teacher found, and error of the predicted gains.

Zoos with planted effects (``benchmarks/planted.py``) have the delta of every pair; each rule takes its share of the
pairs, and sees only these. Regret: delta of a student's best teacher less that of the best one among its pairs, mean
over students. Error: root mean square of predicted less true deltas of all other pairs, from the same model for all
rules. Static rules are those of ``kt.pairs``, with at least as many pairs. ``known`` has the model fitted to all pairs,
which no rule can know: it bounds what choosing the same number for every student can reach; ``known_after_start``
begins with the same random pairs as the adaptive rule.

    python benchmarks/adaptive.py --simulations 200
    python benchmarks/adaptive.py --simulations 0 --tables results/digits-all/tables --share 0.3 --start 1
    python benchmarks/adaptive.py --simulations 100 --models 50 --share 0.2 --checks

With ``--tables`` a finished study is replayed: a pair's delta is that of its best method. With ``--checks`` the
analysis runs on adaptive pairs, on the random ones among them, and on as many random ones: false discoveries, coverage
of 95 % intervals of means and effects, and of the 80 % intervals of ``kt recommend``. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted import GIVEN, LEVEL, PLANTED, RELATED, simulate

from kt import pairs as pairing
from kt.analysis import adaptive
from kt.analysis.adaptive import Zoo
from kt.analysis.dyadic import ols
from kt.analysis.effects import effects
from kt.analysis.inputs import Inputs, load, prepare
from kt.analysis.outcomes import collect, gather
from kt.analysis.recommend import Advisor
from kt.pairs import Adaptive, Stratified, Top

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TRUE = dict(zip(PLANTED, (0.5, 5.0, 2.0, 1.5), strict=True))
"""The planted effects per unit of the property."""
RECOMMENDED = 30
"""Zoos in which the intervals of ``kt recommend`` are checked, which takes ten times as long as all other checks."""
NULL_MEAN = -0.8
"""Expected delta in zoos without effects: a tenth of the students loses 8 points."""


class Study(NamedTuple):
    """A study of which the delta of every pair is known.

    Attributes:
        inputs: its tables.
        zoo: its pairs.
        names: teacher and student of every pair.
        value: of every pair, [n].
    """

    inputs: Inputs
    zoo: Zoo
    names: list[pairing.Pair]
    value: Floats


def study(inputs: Inputs) -> Study:
    """A study from its tables."""
    known = collect(inputs, list(inputs.zoo.index))
    value = adaptive.values(inputs.transfers, "best_teacher")
    teachers, students = (known.number(value.index.get_level_values(role)) for role in pairing.ROLES)
    zoo = Zoo.of(known, teachers, students)
    return Study(inputs, zoo, list(value.index), value.to_numpy(np.float64))


def ours(of: Study, rule: Adaptive) -> tuple[Ints, Ints]:
    """Rows of the pairs that the rule chooses, and the round of each."""
    students, names = of.zoo.pairs.students, list(of.inputs.zoo.index)
    quotas = pairing.quotas(Counter(student for _, student in of.names), rule)
    place = {pair: row for row, pair in enumerate(of.names)}
    mine: dict[str, list[pairing.Pair]] = {}
    for pair in of.names:
        mine.setdefault(pair[1], []).append(pair)
    seen = [place[pair] for found in mine.values() for pair in pairing.draw(found, rule.start, rule.seed)]
    rounds = [0] * len(seen)
    for number in range(1, rule.rounds + 1):
        allowed = np.ones(len(students), bool)
        allowed[seen] = False
        quota = np.array([quotas.get(name, [0] * (number + 1))[number] for name in names], np.int64)
        picks = adaptive.choose(of.zoo, np.array(seen), of.value[seen], allowed, quota, rule.aim)
        seen += [pick.row for pick in picks]
        rounds += [number] * len(picks)
    return np.array(seen), np.array(rounds)


def static(of: Study, share: float, seed: int) -> Iterator[tuple[str, Ints]]:
    """The pairs of every static rule that the tables allow, the same number for each student where the rule can."""
    names, students = list(of.inputs.zoo.index), {student for _, student in of.names}
    place = {pair: row for row, pair in enumerate(of.names)}
    k = max(1, round(round(share * len(of.names)) / len(students)))
    yield "random", np.array([place[pair] for pair in pairing.draw(of.names, k * len(students), seed)])
    scores = pd.DataFrame(of.names, columns=list(pairing.ROLES)).merge(of.inputs.scores, how="left")
    if "acc_teacher" not in scores and "acc" in of.inputs.zoo:
        scores["acc_teacher"] = scores["teacher"].map(of.inputs.zoo["acc"])
    families = of.inputs.zoo["family"].to_dict()
    absent = set(pairing.candidates(names, pairing.All(select="all"))) - set(of.names)
    exclude = tuple(pairing.Pattern(teacher=t, student=s) for t, s in sorted(absent))

    def rows(rule: Top | Stratified) -> Ints:
        chosen = pairing.select(names, rule, 16, scores, families)
        return np.array([place[t, s] for t, s in zip(chosen["teacher"], chosen["student"], strict=True)])

    for name, by in (("most_accurate", "acc_teacher"), ("most_flips", "pos_flips")):
        if by in scores:
            yield name, rows(Top(select="top", k=k, by=by, exclude=exclude))
    for n in range(1, k + 1):
        found = rows(Stratified(select="stratified", n=n, seed=seed, exclude=exclude))
        if len(found) >= k * len(students) or n == k:
            yield "stratified", found
            return


def regret(of: Study, rows: Ints) -> float:
    """Mean over students of their best delta less the best among some pairs; without one the worst is taken."""
    students = of.zoo.pairs.students
    best = np.full((2, of.zoo.models), -np.inf)
    np.maximum.at(best[0], students, of.value)
    np.maximum.at(best[1], students[rows], of.value[rows])
    worst = np.full(of.zoo.models, np.inf)
    np.minimum.at(worst, students, of.value)
    there = np.isfinite(best[0])
    return float((best[0] - np.where(np.isfinite(best[1]), best[1], worst))[there].mean())


def error(of: Study, rows: Ints) -> float:
    """Root mean square error of the predicted values of all pairs but some, from these."""
    others = np.setdiff1d(np.arange(len(of.value)), rows)
    if not len(others):
        return float("nan")
    predicted, _ = adaptive.learn(of.zoo.rows(rows), of.value[rows]).predicted(of.zoo.rows(others))
    return float(np.sqrt(((predicted - of.value[others]) ** 2).mean()))


def known(of: Study, share: float, begun: Ints) -> dict[str, Ints]:
    """Each student's first teachers by the model fitted to all pairs, at once and after some pairs to begin with."""
    mean, _ = adaptive.learn(of.zoo, of.value).predicted(of.zoo)
    k = max(1, round(share * len(mean) / len(np.unique(of.zoo.pairs.students))))

    def first(values: Floats) -> Ints:
        table = pd.DataFrame({"student": of.zoo.pairs.students, "value": values})
        return np.asarray(table.sort_values("value", ascending=False).groupby("student").head(k).index, np.int64)

    after = mean.copy()
    after[begun] = np.inf
    return {"known": first(mean), "known_after_start": first(after)}


def compare(of: Study, rule: Adaptive) -> dict[str, float]:
    """Regret and pairs of all rules, and the errors where the model can be compared."""
    assert rule.share is not None
    chosen = dict(static(of, rule.share, rule.seed))
    for aim in ("best_teacher", "predict"):
        chosen[aim], rounds = ours(of, rule.model_copy(update={"aim": aim}))
    chosen |= known(of, rule.share, chosen["predict"][rounds == 0])
    found = {f"regret_{name}": regret(of, rows) for name, rows in chosen.items()}
    found |= {f"pairs_{name}": float(len(rows)) for name, rows in chosen.items()}
    return found | {f"error_{name}": error(of, chosen[name]) for name in ("random", "best_teacher", "predict")}


def checks(models: int, seed: int, rule: Adaptive) -> Iterator[dict[str, Any]]:
    """What the analysis finds in a zoo with effects and in one without, on three designs."""
    for with_effects in (True, False):
        of = study(prepare(*simulate(models, np.random.default_rng(seed), with_effects)))
        rows, rounds = ours(of, rule)
        drawn = next(rows for name, rows in static(of, rule.share or 0, rule.seed) if name == "random")
        for design, chosen in (("adaptive", rows), ("start", rows[rounds == 0]), ("random", drawn)):
            some = of.inputs.transfers.set_index(list(pairing.ROLES)).loc[[of.names[row] for row in chosen]]
            inputs = prepare(some.reset_index(), of.inputs.zoo.rename_axis("name").reset_index(), of.inputs.scores)
            found = {"design": design, "planted": with_effects, **_inference(inputs, with_effects, seed)}
            if with_effects and design != "start" and seed < RECOMMENDED:
                found["recommend"] = _recommended(of, inputs)
            yield found


def _inference(inputs: Inputs, with_effects: bool, seed: int) -> dict[str, float]:
    outcomes = gather(inputs)[0]
    table = effects(outcomes, 2, np.random.default_rng(seed), draws=999)
    found: dict[str, float] = {}
    for given in GIVEN:
        rows = table[table["given"] == given].set_index("property")
        discovered = rows["p_bh"] < LEVEL
        false = discovered & (~rows.index.isin((*PLANTED, *RELATED)) | (not with_effects))
        found[f"false: {given}"] = float(false.sum() / max(discovered.sum(), 1) if with_effects else false.any())
        if with_effects:
            known = rows.loc[[name for name in TRUE if name in rows.index]]
            true = pd.Series(TRUE)[known.index] * known["per"]
            found[f"covered: {given}"] = float(((known["low"] <= true) & (true <= known["high"])).mean())
    if not with_effects:
        low, high = (ends[0] for ends in ols(outcomes.delta, np.ones((len(outcomes), 1)), outcomes.dyads).interval())
        found["mean covered"] = float(low <= NULL_MEAN <= high)
        found["mean too high by"] = float(outcomes.delta.mean() - NULL_MEAN)
    return found


def _recommended(of: Study, inputs: Inputs) -> float:
    """Share of the pairs not measured whose delta lies in the interval of ``kt recommend``."""
    advisor, true = Advisor(inputs), dict(zip(of.names, of.value, strict=True))
    inside = []
    for student in of.inputs.zoo.index[::5]:
        rows = advisor.rank(student)
        rows = rows[rows["predicted"].notna()]
        deltas = np.array([true[teacher, student] for teacher in rows["teacher"]])
        inside.append(((rows["low"] <= deltas) & (deltas <= rows["high"])).mean())
    return float(np.nanmean(inside))


def summarised(rows: list[dict[str, float]], share: float) -> dict[str, Any]:
    """Means and their standard errors, with the names of the last line."""
    frame = pd.DataFrame(rows)
    print(pd.DataFrame({"mean": frame.mean(), "standard error": frame.sem()}).round(3).to_string())
    mean = frame.mean()
    statics = [f"regret_{name}" for name in ("most_accurate", "most_flips", "stratified") if f"regret_{name}" in mean]
    best = mean[statics].idxmin()
    told = {"ours": "regret_best_teacher", "best_static": best}
    told |= {name: f"regret_{name}" for name in ("random", "known", "known_after_start")}
    columns = {f"regret_{name}": frame[column] for name, column in told.items()}
    columns |= {"error_ours": frame["error_predict"], "error_random": frame["error_random"]}
    return {
        "share": share,
        **{name: round(float(values.mean()), 3) for name, values in columns.items()},
        **{f"{name}_se": round(float(values.sem()), 3) for name, values in columns.items()},
        "best_static": best.removeprefix("regret_"),
        "n": len(frame),
    }


def main() -> None:
    """Simulate or replay, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200, help="planted zoos (default: %(default)s)")
    parser.add_argument("--models", type=int, default=100, help="models per zoo (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.1, help="of the pairs (default: %(default)s)")
    parser.add_argument("--start", type=int, default=2, help="random teachers of each student (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds after them (default: %(default)s)")
    parser.add_argument("--tables", type=Path, help="folder of a finished study's tables, to be replayed")
    parser.add_argument("--seeds", type=int, default=50, help="draws of a replay (default: %(default)s)")
    parser.add_argument("--checks", action="store_true", help="check the analysis instead")
    args = parser.parse_args()
    rule = Adaptive(select="adaptive", start=args.start, rounds=args.rounds, share=args.share)
    seeded = [rule.model_copy(update={"seed": seed}) for seed in range(max(args.simulations, args.seeds))]
    if args.tables:
        of = study(load(*(args.tables / f"{name}.parquet" for name in ("transfers", "zoo", "complementarity"))))
        print(f"{args.tables}: {of.zoo.models} models, {len(of.names)} pairs")
        result = summarised([compare(of, one) for one in seeded[: args.seeds]], args.share)
    elif args.checks:
        found = [row for seed in range(args.simulations) for row in checks(args.models, seed, seeded[seed])]
        groups = pd.DataFrame(found).groupby(["planted", "design"])
        means = groups.mean().round(3)
        for name, table in (("means", means), ("standard errors", groups.sem().round(3))):
            print(f"{name}\n{table.T.to_string()}\n")
        kinds = {True: "with effects", False: "without"}
        result = {f"{kinds[kind]}, {design}": row.dropna().to_dict() for (kind, design), row in means.iterrows()}
    else:
        tables = (
            simulate(args.models, np.random.default_rng(seed), True, correlated=True)
            for seed in range(args.simulations)
        )
        every = [compare(study(prepare(*found)), one) for found, one in zip(tables, seeded, strict=False)]
        result = summarised(every, args.share)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
