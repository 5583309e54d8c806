"""What each figure shows and how to read it, for a reader who sees such a figure for the first time."""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """A figure's heading, the text for those who cannot see it, and how to read it."""

    heading: str
    alt: str
    reading: str


CAPTIONS = {
    "delta_by_method": Caption(
        "What each method does to accuracy",
        "Distribution of transfer deltas over pairs, one row a method, with mean, success rate and number of pairs.",
        "Every point is a pair: how many percentage points of accuracy its student gained (right of zero) or lost "
        "(left). Points below zero with a weaker teacher are harm done by teaching. Hold every method against the grey "
        "controls, which had no teacher: `self` against methods that use no labels, `finetune` against those that do.",
    ),
    "delta_vs_accuracy": Caption(
        "Who gains from whom",
        "Transfer delta of every pair against the accuracy of its teacher minus that of its student, a panel a method.",
        "Left of zero the teacher is the weaker model. Points along the dashed line are students that became as good, "
        "or as bad, as their teacher; points above zero on the left are students that took what a weaker teacher knew "
        "and kept what they knew themselves.",
    ),
    "flips_vs_accuracy": Caption(
        "What models know that others do not",
        "Positive flips of every ordered pair against the accuracy of its teacher minus that of its student.",
        "Height is the share of test images that the student gets wrong and the teacher gets right. Left of zero the "
        "teacher is the weaker model: whatever lies clearly above zero there is knowledge that a better model lacks. A "
        "teacher that is x points better has at least x % positive flips, so nothing can lie in the shaded corner.",
    ),
    "flips_heatmap": Caption(
        "Every teacher and every student",
        "Heat map of positive flips: a row a teacher, a column a student, the most accurate models first.",
        "Dark fields are pairs where the teacher could teach much. Weak students (right) can learn from everyone; a "
        "row that is darker than its neighbours is a teacher that knows something unusual. Grey: not scored.",
    ),
    "flips_by_class": Caption(
        "Where the knowledge lies",
        "Positive flips of every class for up to three pairs: the weaker teacher with most flips, the most "
        "concentrated and the most uniform.",
        "Few high bars mean that the teacher is a specialist: what it knows better lies in a few classes. The pairs "
        "are chosen by rule: the less accurate teacher with the most positive flips; then, among the pairs with "
        "at least the median number of flips, the lowest and the highest entropy over classes.",
    ),
    "amalgamation": Caption(
        "One student for the classes of several teachers",
        "Accuracy of each method with its standard error, on all classes and on those of each teacher, by experiment.",
        "`cfl` and `kd` learn from the teachers alone, without labels; `supervised` is the control with labels. What "
        "common features add is the paired difference to `kd`, beside the accuracies. `teachers` answer each among its "
        "own classes; the ensembles choose among all of them, as the student must.",
    ),
    "flow": Caption(
        "What flows from teachers into a student that learns its own task",
        "Accuracy of each method with its standard error, by experiment; below, the weights of the student's own "
        "features and of its teachers' over time, and the student's accuracy with its teachers and by itself.",
        "Hold `flow` against `scratch`, which learnt from the same images without teachers, and against "
        "`flow_untrained`, whose teachers know nothing. Below, the teachers' weights fall and the student's own rises "
        "to one. Where the two accuracies at the right meet without the upper one falling, the student has taken over "
        "what its teachers gave.",
    ),
}
