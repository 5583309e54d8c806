"""Tables that ``kt analyse`` writes; ``kt.tables.schema`` has them with the others."""

from __future__ import annotations

from kt.tables.columns import COUNT, FLAG, METHOD, PAIR, REAL, SUCCESS, TEXT, Column

CONTROL = Column("control", FLAG, "flag", "true for methods without a teacher")


def _real(name: str, unit: str, meaning: str) -> Column:
    return Column(name, REAL, unit, meaning, True)


POINTS = "percentage points"
INTERVAL = (
    _real("se", POINTS, "standard error, robust to pairs that share a model (dyadic)"),
    _real("se_two_way", POINTS, "standard error clustered by teacher and by student, for comparison"),
    _real("se_iid", POINTS, "ordinary standard error, as if pairs were independent"),
    _real("low", POINTS, "lower end of the 95 % interval from `se`"),
    _real("high", POINTS, "its upper end"),
    _real("boot_low", POINTS, "lower end of the 95 % bootstrap interval over models"),
    _real("boot_high", POINTS, "its upper end"),
)

ANALYSIS: dict[str, tuple[Column, ...]] = {
    "groups": (
        METHOD,
        CONTROL,
        Column(
            "grouping",
            TEXT,
            "name",
            "property that pairs are grouped by: `all`, `teacher` (weaker …), `student kind`, …",
        ),
        Column("level", TEXT, "name", "the group; bins of the accuracy difference are numbered"),
        _real("low_end", POINTS, "lower end of a range of the accuracy difference"),
        _real("high_end", POINTS, "upper end of the bin"),
        Column("pairs", COUNT, "pairs", "finished pairs"),
        Column("students", COUNT, "models", "distinct students"),
        Column("teachers", COUNT, "models", "distinct teachers"),
        Column("delta", REAL, POINTS, "mean transfer delta over pairs"),
        *INTERVAL,
        _real("quartile_1", POINTS, "first quartile of delta over pairs"),
        _real("median", POINTS, "median"),
        _real("quartile_3", POINTS, "third quartile"),
        _real("top_quartile", POINTS, "mean delta of the best quarter of the pairs"),
        _real("worst", POINTS, "lowest delta"),
        SUCCESS,
        _real("transfer_rate", "percent", "mean transfer rate"),
    ),
    "by_model": (
        METHOD,
        CONTROL,
        Column("role", TEXT, "name", "`student` or `teacher`"),
        Column("model", TEXT, "name", "the model in that role"),
        Column("pairs", COUNT, "pairs", "its finished pairs"),
        Column("delta", REAL, POINTS, "mean transfer delta over them"),
        Column("best", REAL, POINTS, "highest delta"),
        Column("worst", REAL, POINTS, "lowest delta"),
        SUCCESS,
        _real("transfer_rate", "percent", "mean transfer rate"),
        _real("params", "count", "parameters, from the table `zoo`"),
        Column("kind", TEXT, "name", "kind, from the table `zoo`", True),
        Column("family", TEXT, "name", "family, from the table `zoo`", True),
        _real("acc", "percent", "accuracy before transfer, from the table `zoo`"),
    ),
    "spread": (
        METHOD,
        CONTROL,
        Column("role", TEXT, "name", "the models: as `student` or as `teacher`"),
        Column("models", COUNT, "models", "models in that role"),
        *(
            Column(f"{column}_{name}", REAL, unit, f"{text} over models of their {what}")
            for column, unit, what in (("success", "percent", "success rates"), ("delta", POINTS, "mean deltas"))
            for name, text in (("quartile_1", "first quartile"), ("median", "median"), ("quartile_3", "third quartile"))
        ),
    ),
    "variance": (
        METHOD,
        CONTROL,
        Column("pairs", COUNT, "pairs", "finished pairs"),
        Column("models", COUNT, "models", "distinct models"),
        Column("sd", REAL, POINTS, "standard deviation of delta"),
        _real("teacher", "percent of variance", "due to the teacher"),
        _real("student", "percent of variance", "due to the student"),
        _real("pair", "percent of variance", "due to neither alone: to the pair, and to chance"),
        _real("of_which_seeds", "percent of variance", "part of `pair` that is due to chance between seeds"),
        _real("seed_sd", POINTS, "standard deviation of delta over seeds of one pair; null without repeats"),
        _real("r2_ceiling", "0 to 1", "highest R² that a prediction can be expected to reach; null without repeats"),
    ),
    "effects": (
        METHOD,
        Column("property", TEXT, "name", "property of the pair, or of its `teacher_` or `student_`", holds_names=True),
        Column(
            "given", TEXT, "name", "what is held fixed: `nothing`, `acc_difference`, or `all others`", holds_names=True
        ),
        Column("pairs", COUNT, "pairs", "finished pairs whose property is known"),
        Column("models", COUNT, "models", "distinct models among them"),
        Column("effect", REAL, POINTS, "change of delta with one standard deviation more of the property"),
        *INTERVAL,
        _real("df", "count", "degrees of freedom of the t distribution behind `low`, `high` and `p`"),
        _real("per", "the property's", "one standard deviation of the property"),
        _real("p", "0 to 1", "two-sided p-value from `se` and `df`"),
        _real("p_permutation", "0 to 1", "p-value from permuting the models' labels (QAP), for ranks of delta"),
        _real("p_holm", "0 to 1", "corrected for the method's properties (Holm): chance of any false discovery"),
        _real("p_bh", "0 to 1", "the same by Benjamini-Hochberg: share of false discoveries"),
    ),
    "ladder": (
        METHOD,
        Column("scheme", TEXT, "name", "models that are held out: `students`, `teachers` or `both`"),
        Column("rung", TEXT, "name", "the predictor"),
        Column("pairs", COUNT, "pairs", "held-out pairs"),
        Column("students", COUNT, "models", "distinct students among them"),
        Column("models", COUNT, "models", "distinct models in all these pairs"),
        _real("hours", "hours", "time that the transfers of all these pairs took"),
        _real("r2", "≤ 1", "share of the squared error removed, compared with the mean of the training pairs"),
        _real(
            "r2_ceiling", "0 to 1", "highest R² that a prediction can be expected to reach; null without repeated seeds"
        ),
        _real("tau", "−1 to 1", "weighted Kendall τ of a student's teachers, mean over students"),
        *(_real(f"regret_{k}", POINTS, f"best delta − best delta of the {k} predicted best teachers") for k in (1, 3)),
        *(_real(f"hours_saved_{k}", "percent", f"time saved by transferring only from those {k}") for k in (1, 3)),
    ),
    "predictions": (
        *PAIR,
        METHOD,
        Column("delta", REAL, POINTS, "measured, mean over seeds"),
        Column("predicted", REAL, POINTS, "predicted by `rung` from other students only, mean over random folds"),
        Column("rung", TEXT, "name", "the predictor that does best on held-out students"),
    ),
    "importances": (
        METHOD,
        Column("properties", TEXT, "names", "correlated properties, which are shuffled together", holds_names=True),
        Column("importance", REAL, "R²", "R² on held-out students that the boosted trees lose when these are shuffled"),
        _real("importance_se", "R²", "its standard error over folds"),
        Column("r2", REAL, "R²", "R² of the trees on held-out students"),
    ),
    "expertise": (
        Column("area", COUNT, "percent", "share of a teacher's positive flips"),
        Column("pairs", COUNT, "pairs", "scored pairs"),
        Column("quartile_1", REAL, "classes", "first quartile over pairs of the fewest classes that hold that share"),
        Column("median", REAL, "classes", "median"),
        Column("quartile_3", REAL, "classes", "third quartile"),
        _real("similarity", "−1 to 1", "mean cosine of the vectors of those classes, where it was measured"),
        _real("of_all_classes", "−1 to 1", "the same of all classes"),
    ),
    "several": (
        METHOD,
        _real("teachers", "count", "teachers of each student"),
        Column("students", COUNT, "models", "distinct students"),
        Column("delta", REAL, POINTS, "mean transfer delta over students"),
        _real("se", POINTS, "standard error over students"),
        Column("success", REAL, "percent", "students with delta > 0"),
        Column("single", TEXT, "name", "the single-teacher method compared with", True),
        _real("single_mean", POINTS, "mean delta of the same students with one of the same teachers"),
        _real("single_best", POINTS, "the same with the best of those teachers, which is known only afterwards"),
    ),
}
