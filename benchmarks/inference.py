"""Coverage of 95 % intervals for pairs that share models.

Simulated deltas of all ordered pairs (or some) are a teacher's effect + a student's effect + noise. The regression has
a property of teachers and one of pairs, both without any effect. `dyadic` are the dyadic-robust intervals of
``kt.analysis.dyadic.ols``, `ordinary` those that assume independent pairs, `bootstrap` those over models.

    python benchmarks/inference.py --simulations 1000

Prints the coverage of each in percent, for the mean, the teacher's property and the pair's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy import stats

from kt.analysis import statistics
from kt.analysis.dyadic import Dyads, ols

SETTINGS = {  # standard deviations of teachers, students and noise
    "teachers and students": (1.0, 1.0, 1.0),
    "students mostly": (0.5, 1.0, 0.5),
    "heavy tails": (0.5, 1.0, 1.0),
    "good teachers gain little": (1.0, 0.5, 0.5),
    "pairs only": (0.0, 0.0, 1.0),
}


def coverage(setting: str, models: int, share: float, simulations: int, draws: int, rng: np.random.Generator) -> dict:
    """Coverage in percent of each kind of interval, for the three coefficients."""
    sd_teacher, sd_student, sd_noise = SETTINGS[setting]
    everyone = np.array([(t, s) for t in range(models) for s in range(models) if t != s])
    covered = {"dyadic": np.zeros(3), "ordinary": np.zeros(3), "bootstrap": np.zeros(3)}
    for _ in range(simulations):
        t, s = everyone[rng.random(len(everyone)) < share].T
        teacher, student = rng.normal(0, sd_teacher, models), rng.normal(0, sd_student, models)
        noise = rng.normal(0, sd_noise, len(t))
        if setting == "heavy tails":
            student, noise = (sd * rng.standard_t(3, n) for sd, n in ((sd_student, models), (sd_noise, len(t))))
        if setting == "good teachers gain little":
            student = -sd_student * teacher
        y = teacher[t] + student[s] + noise
        level = rng.normal(size=models)
        x = np.column_stack([np.ones(len(t)), rng.normal(size=models)[t], level[t] - level[s]])
        fit = ols(y, x, Dyads.of(t, s))
        low, high = fit.interval()
        covered["dyadic"] += (low <= 0) & (high >= 0)
        covered["ordinary"] += np.abs(fit.beta) <= stats.norm.ppf(0.975) * fit.se_iid
        sample = statistics.slopes(y, x, t, s, statistics.weights(models, draws, rng))
        ends = [statistics.interval(column) for column in sample.T]
        covered["bootstrap"] += [low <= 0 <= high for low, high in ends]
    return {kind: (100 * count / simulations).round(1).tolist() for kind, count in covered.items()}


def main() -> None:
    """Simulate every setting and print coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="simulations per setting (default: %(default)s)")
    parser.add_argument("--models", type=int, default=20, help="models per zoo (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="share of all pairs (default: %(default)s)")
    parser.add_argument("--bootstrap", type=int, default=200, help="bootstrap samples (default: %(default)s)")
    args = parser.parse_args()
    rng, result = np.random.default_rng(0), {}
    print(f"{args.models} models, {args.share:.0%} of pairs, coverage (%) of mean, teacher's property, pair's property")
    for setting in SETTINGS:
        result[setting] = coverage(setting, args.models, args.share, args.simulations, args.bootstrap, rng)
        print(f"{setting}: {result[setting]}", flush=True)
    print(json.dumps({"nominal": 95, "models": args.models, "simulations": args.simulations, "coverage": result}))


if __name__ == "__main__":
    main()
