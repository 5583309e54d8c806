"""Statistics of crossed pairs: variance components, bootstrap over models, permutation p-values, corrections.

Resampling draws models, never pairs: pairs of one model stay together, because they share its luck.

Model of the components: v = mean + a_teacher + b_student + rest, all independent. Variances are estimated by moments,
not by likelihood: unbiased for any pattern of missing pairs, without a distribution to assume (collapsed students are
far from normal), without iteration that might not converge, and in time proportional to the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """Variances of teachers, students and the rest, in squared units of the values; never negative.

    Attributes:
        teacher: variance of the teachers' effects.
        student: variance of the students' effects.
        residual: variance of what is left, of the pair itself and of chance.
        covariance: of a model's effect as a teacher with its effect as a student; good models teach well and gain
            little, so that it is often negative.
        known: false where the pairs cannot tell the three apart; then all is called residual.
    """

    teacher: float
    student: float
    residual: float
    covariance: float = 0.0
    known: bool = True

    @property
    def total(self) -> float:
        """The sum of the three."""
        return self.teacher + self.student + self.residual


def moments(values: Floats, teachers: Ints, students: Ints) -> Components:
    """Variance components of a crossed design with any pairs missing.

    Half the squared differences within a teacher hold student and residual variance, those within a student hold
    teacher and residual variance, and those between any two pairs hold all three; with the counts of pairs that gives
    three linear equations. What comes out negative is set to zero, and the others are scaled to the same sum.

    Args:
        values: one number per pair, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].

    Source: Gao and Owen 2017, Electronic Journal of Statistics 11, equations 5 and 6; the covariance is ours: the mean
    product over two pairs, of one the teacher and of the other the student, corrected for taking out the mean.
    """
    n = len(values)
    spread = float(values.var(ddof=1)) if n > 1 else 0.0
    of_teacher, of_student = np.bincount(teachers), np.bincount(students)
    of_teacher, of_student = of_teacher[of_teacher > 0], of_student[of_student > 0]
    # Rows: within teachers, within students, between any two pairs. Columns: teacher, student, residual.
    system = np.array(
        [
            [0, n - len(of_teacher), n - len(of_teacher)],
            [n - len(of_student), 0, n - len(of_student)],
            [n**2 - (of_teacher**2).sum(), n**2 - (of_student**2).sum(), n**2 - n],
        ],
        np.float64,
    )
    if n < 4 or np.linalg.matrix_rank(system) < 3:
        return Components(0.0, 0.0, spread, known=False)
    found = [_within(values, teachers), _within(values, students), n * float(((values - values.mean()) ** 2).sum())]
    solved = np.linalg.solve(system, np.array(found))
    positive = np.maximum(solved, 0)
    if solved.sum() <= 0 or positive.sum() <= 0:
        return Components(0.0, 0.0, spread, known=False)
    teacher, student, residual = (float(part) for part in positive * (solved.sum() / positive.sum()))
    return Components(teacher, student, residual, _covariance(values, teachers, students, teacher, student))


def _covariance(values: Floats, teachers: Ints, students: Ints, teacher: float, student: float) -> float:
    """Covariance of the two effects of a model, given their variances; no larger than those allow."""
    models, n = 1 + int(max(teachers.max(), students.max())), len(values)
    centred = values - values.mean()
    as_teacher, as_student = np.bincount(teachers, centred, models), np.bincount(students, centred, models)
    taught, learned = np.bincount(teachers, minlength=models), np.bincount(students, minlength=models)
    products = float(taught @ learned)
    left = 1 - 2 * products / n**2
    if products == 0 or left <= 0:
        return 0.0
    of_mean = (teacher * float(taught @ taught) + student * float(learned @ learned)) / n**2
    most = float(np.sqrt(teacher * student))
    return float(np.clip((float(as_teacher @ as_student) / products + of_mean) / left, -most, most))


def _within(values: Floats, groups: Ints) -> float:
    """Sum of squares within groups."""
    count = np.maximum(np.bincount(groups), 1)
    centred = values - (np.bincount(groups, values) / count)[groups]
    return float(centred @ centred)


def shrunken(
    values: Floats, teachers: Ints, students: Ints, models: int, found: Components
) -> tuple[float, Floats, Floats]:
    """Mean, teachers' and students' effects, each effect drawn towards zero as far as its pairs leave it uncertain.

    Args:
        values: one number per pair, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        models: how many models there are; those without a pair get the effect zero.
        found: the variance components.

    Returns:
        The mean, and the effects of teachers and of students, [models] each.

    Source: Henderson's mixed model equations (best linear unbiased prediction).
    """
    effect_of = np.zeros((2, models))
    average = float(values.mean())
    if found.residual <= 0 or found.teacher + found.student <= 0:
        return average, effect_of[0], effect_of[1]
    roles = [
        (role, number) for role, number in ((0, teachers), (1, students)) if (found.teacher, found.student)[role] > 0
    ]
    used = [np.unique(number, return_inverse=True) for _, number in roles]
    sizes = [len(names) for names, _ in used]
    total = 1 + sum(sizes)
    starts = np.cumsum([1, *sizes])[:-1]
    system, target = np.zeros((total, total)), np.zeros(total)
    places = [start + inverse for start, (_, inverse) in zip(starts, used, strict=True)]
    places = [np.zeros(len(values), np.int64), *places]
    for i in places:
        target += np.bincount(i, values, total)
        for j in places:
            system += np.bincount(i * total + j, minlength=total * total).reshape(total, total)
    for start, size, (role, _) in zip(starts, sizes, roles, strict=True):
        block = np.arange(start, start + size)
        system[block, block] += found.residual / (found.teacher, found.student)[role]
    solved = np.linalg.solve(system, target)
    for start, size, (role, _), (names, _) in zip(starts, sizes, roles, used, strict=True):
        effect_of[role, names] = solved[start : start + size]
    return float(solved[0]), effect_of[0], effect_of[1]


def weights(models: int, draws: int, rng: np.random.Generator) -> Floats:
    """Counts of each model in each bootstrap sample of the models, [draws, models]."""
    return rng.multinomial(models, np.full(models, 1 / models), size=draws).astype(np.float64)


def over_models(values: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap sums of pairs, [draws]: a pair counts as often as its teacher was drawn times its student.

    Args:
        values: one number per pair, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        drawn: ``weights``, [draws, models].
    """
    models = drawn.shape[1]
    square = np.bincount(teachers * models + students, values, models * models).reshape(models, models)
    return np.asarray(((drawn @ square) * drawn).sum(1), np.float64)


def means(values: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap means over pairs, [draws]; NaN where a sample of models holds no pair."""
    count = over_models(np.ones(len(values)), teachers, students, drawn)
    with np.errstate(invalid="ignore", divide="ignore"):
        return over_models(values, teachers, students, drawn) / count


def slopes(y: Floats, x: Floats, teachers: Ints, students: Ints, drawn: Floats) -> Floats:
    """Bootstrap coefficients of a regression over pairs, [draws, k]; NaN where a sample cannot tell them apart.

    Args:
        y: one number per pair, [n].
        x: regressors, the constant among them, [n, k].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        drawn: ``weights``, [draws, models].
    """
    k = x.shape[1]
    products, target = np.empty((len(drawn), k, k)), np.empty((len(drawn), k))
    for i in range(k):
        target[:, i] = over_models(x[:, i] * y, teachers, students, drawn)
        for j in range(i + 1):
            products[:, i, j] = products[:, j, i] = over_models(x[:, i] * x[:, j], teachers, students, drawn)
    found = np.full((len(drawn), k), np.nan)
    usable = np.linalg.matrix_rank(products, hermitian=True) == k
    found[usable] = np.linalg.solve(products[usable], target[usable][..., None])[..., 0]
    return found


def interval(sample: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, leaving out those that are NaN; infinite where hardly any is left."""
    known = sample[np.isfinite(sample)]
    if len(known) < max(20, len(sample) / 2):
        return -np.inf, np.inf
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def permutation_p(
    y: Floats, teachers: Ints, students: Ints, properties: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """P-values of correlations between an outcome of pairs and properties of all pairs, by permuting model labels.

    The models' names are shuffled in the properties, rows and columns alike, so that what pairs share through their
    models stays as it is (QAP). Where other regressors are held fixed, both sides are their residuals.

    Args:
        y: the outcome of the observed pairs, centred, [n].
        teachers: number of the teacher, int [n].
        students: number of the student, int [n].
        properties: every property of every ordered pair of the models, centred over pairs, with zero where it is
            unknown and on the diagonal, [models, models, k].
        draws: permutations.
        rng: random numbers.

    Returns:
        Two-sided p-values, [k]; the smallest possible is 1 / (draws + 1).

    Source: Dekker, Krackhardt, Snijders 2007, Psychometrika 72 (double semi-partialling).
    """
    models, _, k = properties.shape
    flat = properties.reshape(models * models, k).astype(np.float32)
    squares = flat**2
    outcome = y.astype(np.float32)

    def correlations(orders: list[Ints]) -> Floats:
        # Moving the outcome of one matrix about is cheaper than moving k properties.
        moved = np.zeros((2, len(orders), models * models), np.float32)
        for place, order in enumerate(orders):
            cells = order[teachers] * models + order[students]
            moved[0, place, cells] = outcome
            moved[1, place, cells] = 1
        norm = np.sqrt(moved[1] @ squares)
        found: Floats = np.abs(moved[0] @ flat) / np.where(norm > 0, norm, np.inf)
        return found

    observed = correlations([np.arange(models)])[0]
    beaten = np.zeros(k)
    at_once = max(1, min(64, 5_000_000 // models**2))
    for start in range(0, draws, at_once):
        orders = [rng.permutation(models) for _ in range(min(at_once, draws - start))]
        beaten += (correlations(orders) >= observed * (1 - 1e-5)).sum(0)
    return (1 + beaten) / (draws + 1)


def holm(p: Floats) -> Floats:
    """P-values adjusted so that the chance of any false discovery is bounded; NaN stays NaN. Source: Holm 1979."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def benjamini_hochberg(p: Floats) -> Floats:
    """P-values adjusted so that the expected share of false discoveries is bounded; NaN stays NaN."""
    adjusted = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted
