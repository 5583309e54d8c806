"""All figures: where each stands in the report, what it shows and how to read it.

This is the list of figures that the workflow asks for; each needs a function of the same name in ``kt/figures``.
Nothing is imported here, because the workflow reads this file often.
"""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """A figure's section of the report, its heading, the text for those who cannot see it, and how to read it."""

    section: str
    heading: str
    alt: str
    reading: str


CAPTIONS = {
    "delta_by_method": Caption(
        "works",
        "What each method does to accuracy",
        "Distribution of transfer deltas over all pairs and over pairs with a weaker teacher, one row a method, with "
        "mean, success rate and number of pairs.",
        "Every point is a pair: how many percentage points of accuracy its student gained (right of zero) or lost "
        "(left). Points below zero with a weaker teacher are harm done by teaching. Hold every method against the grey "
        "controls, which had no teacher: `self` against methods that use no labels, `finetune` against those that do.",
    ),
    "success_by_method": Caption(
        "works",
        "For how many models it works",
        "Success rates of every method: a dot a student over its teachers, and a dot a teacher over its students, with "
        "medians and quartiles; beside a method with the published parameters the published ones.",
        "A dot at 100 % (left) is a student that gained from every one of its teachers; a dot at 0 % one that lost "
        "accuracy, or gained none, with all of them. A median hides students that always lose: look for dots far left.",
    ),
    "delta_vs_accuracy": Caption(
        "whom",
        "Who gains from whom",
        "Transfer delta of every pair against the accuracy of its teacher minus that of its student, a panel a method, "
        "with the mean of the best quarter of the pairs in every bin.",
        "In the shaded region the teacher is the weaker model. Points along the dashed line are students that became "
        "as good, or as bad, as their teacher; points above zero in the shade are students that gained although their "
        "teacher was weaker. A control's points show how much of that needs no teacher at all.",
    ),
    "teacher_share": Caption(
        "whom",
        "Who teaches how much",
        "Share of the transfer images that the teacher teaches, for every pair, against the accuracy difference.",
        "Where a method shares the images out, a better teacher should get more of them, and a weaker one few, but not "
        "none: those are what it knows better. Above the grey line the teacher teaches most of the images.",
    ),
    "delta_by_kind": Caption(
        "whom",
        "Kinds of students and teachers",
        "Mean transfer delta by kind of the student and of the teacher, and success rate by kind of the student.",
        "Intervals that are wide or missing rest on few models: a kind with one model says what that model does, not "
        "what its kind does.",
    ),
    "delta_by_family": Caption(
        "whom",
        "Families of students and teachers",
        "Mean transfer delta by family of the student and of the teacher, and success rate by family of the student.",
        "The number of models behind every row stands under its name. A family with one model is that model: its "
        "interval says how its pairs differ, not how others of the family would do.",
    ),
    "transfer_rate_vs_size": Caption(
        "whom",
        "How much of the teacher’s knowledge arrives, by size of the student",
        "Transfer rate of every student, mean over its teachers, against its parameters, a panel a method.",
        "The transfer rate is the share of the images that only the teacher got right and that the student gets right "
        "afterwards. The published rate (hollow, and the stars) counts all gained images of the classes in which the "
        "teacher knew any better: it is higher, and may pass 100 %. What a control reaches was not taught by anybody: "
        "only what a method has beyond it was.",
    ),
    "predictor_ladder": Caption(
        "predicts",
        "How well gains can be predicted",
        "Held-out R² and weighted Kendall τ of every predictor, simplest first, for new students, new teachers and "
        "pairs of both.",
        "From top to bottom predictors know more about the two models. A rung is worth its properties where it lies "
        "clearly right of the rungs above it; nothing can lie right of the dotted ceiling but by chance. R² asks for "
        "the size of the gain, τ only for the order of a student’s teachers, the best ones weighing most.",
    ),
    "property_effects": Caption(
        "predicts",
        "Which properties correlate with the gain",
        "Effect of every property on the transfer delta with 95 % intervals, alone and at equal accuracy difference, a "
        "panel a method.",
        "A filled mark is a property that correlates with the gain beyond chance, corrected for all properties tried. "
        "Grey bars are the intervals that one would get by taking pairs for independent: where they exclude zero and "
        "the coloured line does not, the usual analysis would have claimed too much.",
    ),
    "predicted_vs_measured": Caption(
        "predicts",
        "Predictions beside outcomes",
        "Measured transfer delta of every pair against the one predicted from other students and teachers.",
        "Points on the dashed line came out as predicted. The predictor is the one that does best on students never "
        "seen; a flat cloud means that it knows little.",
    ),
    "several_teachers": Caption(
        "several",
        "Several teachers together",
        "Mean transfer delta of every method with several teachers, beside one of the same teachers and the best.",
        "A method with several teachers is worth its budget where it lies right of the square. The triangle is the "
        "best of the same teachers alone, which nobody knows beforehand.",
    ),
    "amalgamation": Caption(
        "amalgamation",
        "One student for the classes of several teachers",
        "Accuracy of each method with its standard error, on all classes and on those of each teacher, by experiment.",
        "`cfl` and `kd` learn from the teachers alone, without labels; `supervised` is the control with labels. What "
        "common features add is the paired difference to `kd`, beside the accuracies. `teachers` answer each among its "
        "own classes; the ensembles choose among all of them, as the student must.",
    ),
    "flow": Caption(
        "flow",
        "Whether the flow helps, and when the teachers fade",
        "Accuracy of each method with its standard error, by experiment; below, the weights of the student's own "
        "features and of its teachers' over time, and the student's accuracy with its teachers and by itself.",
        "Hold `flow` against `scratch`, which learnt from the same images without teachers, and against "
        "`flow_untrained`, whose teachers know nothing. Below, the teachers' weights fall and the student's own rises "
        "to one. Where the two accuracies at the right meet without the upper one falling, the student has taken over "
        "what its teachers gave.",
    ),
    "flips_vs_accuracy": Caption(
        "knows",
        "What models know that others do not",
        "Positive flips of every ordered pair against the accuracy of its teacher minus that of its student.",
        "Height is the share of test images that the student gets wrong and the teacher gets right. Left of zero the "
        "teacher is the weaker model: whatever lies clearly above zero there is knowledge that a better model lacks. A "
        "teacher that is x points better has at least x % positive flips, so nothing can lie in the shaded corner.",
    ),
    "flips_heatmap": Caption(
        "knows",
        "Every teacher and every student",
        "Heat map of positive flips: a row a teacher, a column a student, the most accurate models first.",
        "Dark fields are pairs where the teacher could teach much. Weak students (right) can learn from everyone; a "
        "row that is darker than its neighbours is a teacher that knows something unusual. Grey: not scored.",
    ),
    "flips_concentration": Caption(
        "knows",
        "How concentrated the knowledge is",
        "Entropy of positive flips over classes against their number; classes that hold given shares of the flips; and "
        "how similar those classes are.",
        "Left: points below the grey line are teachers whose extra knowledge lies in fewer classes than chance would "
        "make it. Middle: a specialist’s flips are held by few classes, below the grey strokes. Right: above the grey "
        "line, the classes of a teacher’s expertise resemble one another.",
    ),
    "flips_by_class": Caption(
        "knows",
        "Where the knowledge lies",
        "Positive flips of every class for up to three pairs: the weaker teacher with most flips, the most "
        "concentrated and the most uniform.",
        "Few high bars mean that the teacher is a specialist: what it knows better lies in a few classes. The pairs "
        "are chosen by rule: the less accurate teacher with the most positive flips; then, among the pairs with "
        "at least the median number of flips, the lowest and the highest entropy over classes.",
    ),
}
