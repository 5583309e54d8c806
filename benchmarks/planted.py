"""Power and false discoveries of the analysis on simulated zoos with planted effects.

Every simulated zoo has random effects of teachers and students, heavy-tailed noise, and collapses a tenth of its
students. In half of the zoos four properties have planted effects: the accuracy difference, the student's size, the
teacher's kind and a family that the pair shares. All other properties (year, calibration error, licence, and measures
of pairs) are null in every zoo.

    python benchmarks/planted.py --simulations 500 --models 30

Prints how often each planted property is found (p < 0.05 after correction), and the false discoveries by the ordinary,
the dyadic and the permutation p-value, and after correction. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from kt.analysis.effects import ALONE, GIVEN_GAP, effects
from kt.analysis.inputs import prepare
from kt.analysis.outcomes import gather

LEVEL = 0.05
GIVEN = (ALONE, GIVEN_GAP)
PLANTED = ("acc_difference", "student_log10_params", "teacher_kind=transformer", "same_family")
RELATED = ("teacher_kind=cnn", "teacher_kind=hybrid", "log10_params_difference")
"""Derived from planted properties, so they correlate with gains too: finding them is no false discovery."""


def simulate(
    models: int,
    rng: np.random.Generator,
    planted: bool,
    methods: Sequence[str] = ("kl_dp",),
    seeds: int = 1,
    correlated: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Simulate the tables ``transfers``, ``zoo`` and ``complementarity`` of a zoo, all ordered pairs.

    Args:
        models: Number of models in the zoo.
        rng: Random number generator.
        planted: Whether the properties have effects.
        methods: Names of the methods; each has its own effects of models and its own noise.
        seeds: Number of seeds per transfer.
        correlated: Adds ``acc`` and ``macs`` to the zoo and flips to the scores, all correlated with the planted
            properties.
    """
    names = np.array([f"model_{i:04d}" for i in range(models)], object)
    acc = np.clip(rng.normal(78, 4, models), 50, 95)
    params = (10 ** rng.normal(7.3, 0.5, models)).astype(np.int64)
    kind = np.resize(["cnn", "transformer", "hybrid"], models)[rng.permutation(models)]
    family = np.resize(["a", "b", "c", "d", "e"], models)[rng.permutation(models)]
    zoo = pd.DataFrame(
        {
            "name": names,
            "kind": kind,
            "family": family,
            "params": params,
            "licence": np.resize(["MIT", "Apache-2.0"], models)[rng.permutation(models)],
            "year": rng.integers(2012, 2025, models),
            "ece": rng.gamma(2, 2, models),
        }
    )
    t, s = (grid.ravel() for grid in np.indices((models, models)))
    t, s = t[t != s], s[t != s]
    gap = acc[t] - acc[s]
    scores = pd.DataFrame({"teacher": names[t], "student": names[s], "acc_difference": gap})
    for measure in ("agreement", "kappa", "cka"):  # effects of both models and of the pair
        scores[measure] = 60 + rng.normal(0, 5, models)[t] + rng.normal(0, 5, models)[s] + rng.normal(0, 3, len(t))
    if correlated:
        zoo["acc"], zoo["macs"] = acc, (params * rng.uniform(50, 200, models)).astype(np.int64)
        scores["pos_flips"] = np.maximum(gap, 0) + rng.gamma(4, 1, len(t))
        scores["neg_flips"] = scores["pos_flips"] - gap
    rows = []
    for method in methods:
        delta = rng.normal(0, 0.7, models)[t] + rng.normal(0, 1.0, models)[s] + rng.standard_t(3, len(t)) * 0.5
        collapsed = rng.random(models) < 0.1
        delta -= 8 * collapsed[s]
        if planted:
            size = np.log10(params)
            delta += 0.5 * gap + 2.5 * (size[s] - 7.3) / 0.5 + 2.0 * (kind[t] == "transformer")
            delta += 1.5 * (family[t] == family[s])
        rows += [
            pd.DataFrame({"teacher": names[t], "student": names[s], "method": method, "seed": seed}).assign(
                delta=delta + rng.normal(0, 0.3, len(t)), seconds=60.0, transfer_rate=40.0
            )
            for seed in range(seeds)
        ]
    return pd.concat(rows, ignore_index=True), zoo, scores


def main() -> None:
    """Simulate, analyse and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--simulations", type=int, default=500, help="zoos with and zoos without effects, each (default: %(default)s)"
    )
    parser.add_argument("--models", type=int, default=30, help="models per zoo (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after this time and report the finished simulations"
    )
    args = parser.parse_args()
    rng, began, done = np.random.default_rng(args.seed), time.monotonic(), 0
    found = {given: dict.fromkeys(PLANTED, 0) for given in GIVEN}
    share: dict[str, list[float]] = {given: [] for given in GIVEN}
    any_false: dict[str, list[bool]] = {given: [] for given in GIVEN}
    tests = []
    for simulation in range(2 * args.simulations):
        planted = simulation % 2 == 0
        if planted and time.monotonic() - began > 60 * args.minutes:
            break
        done = simulation // 2 + 1
        outcomes = gather(prepare(*simulate(args.models, rng, planted)))[0]
        everything = effects(outcomes, 2, rng, draws=999)
        for given in GIVEN:
            rows = everything[everything["given"] == given].set_index("property")
            discovered = rows["p_bh"] < LEVEL
            null = ~rows.index.isin((*PLANTED, *RELATED)) | (not planted)
            false = int((discovered & null).sum())
            if planted:
                for name in PLANTED:
                    found[given][name] += int(discovered.get(name, False))
                share[given].append(false / max(int(discovered.sum()), 1))
            else:
                any_false[given].append(false > 0)
                ordinary = 2 * stats.norm.sf(np.abs(rows["effect"] / rows["se_iid"]))
                tests.append([(p < LEVEL).mean() for p in (ordinary, rows["p"], rows["p_permutation"])])
        if simulation % 100 == 99:
            print(
                f"{(simulation + 1) // 2} of {args.simulations} with and without effects", file=sys.stderr, flush=True
            )

    def over_simulations(counts: Mapping[str, int]) -> dict[str, float]:
        return {name: round(count / done, 3) for name, count in counts.items()}

    rates = dict(zip(("ordinary", "dyadic", "permutation"), np.mean(tests, 0).round(4).tolist(), strict=True))
    result = {
        "simulations": done,
        "models": args.models,
        "found_alone": over_simulations(found[ALONE]),
        "found_at_equal_accuracy": over_simulations(found[GIVEN_GAP]),
        "false_share_of_discoveries": [round(float(np.mean(share[given])), 4) for given in GIVEN],
        "any_discovery_in_null_zoos": [round(float(np.mean(any_false[given])), 4) for given in GIVEN],
        "null_properties_below_0.05": rates,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
