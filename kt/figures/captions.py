"""All figures: where each stands in the report, what it shows and how to read it.

This is the list of figures that the workflow asks for; each needs a function of the same name in ``kt/figures``.
Nothing is imported here, because the workflow reads this file often.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple


class Caption(NamedTuple):
    """A figure's section of the report, its heading, the text for those who cannot see it, and how to read it.

    Words of the task stand in braces: ``{metric}`` and its ``{difference}``, ``{example}``, ``{flips}``, ``{rate}``.
    """

    section: str
    heading: str
    alt: str
    reading: str

    def told(self, words: Mapping[str, str]) -> Caption:
        """The caption in the words of a task, by the names that stand in braces."""
        return Caption(self.section, *(text.format_map(words) for text in self[1:]))


CAPTIONS = {
    "flips_vs_accuracy": Caption(
        "knows",
        "What models know that others do not",
        "Positive flips of every ordered pair against the {metric} of its teacher minus that of its student.",
        "Height is {flips}. Left of the vertical line the teacher is the weaker model: whatever lies clearly above "
        "zero there is knowledge that the better model lacks. {bound}, so nothing can lie in the shaded corner.",
    ),
    "flips_heatmap": Caption(
        "knows",
        "Every teacher and every student",
        "Heat map of positive flips{of_pixels}: one row per teacher, one column per student, the best models first.",
        "Dark fields are pairs whose teacher could teach much. Weak students (right) can learn from every teacher; a "
        "row that is darker than its neighbours is a teacher that knows something unusual. Grey: not scored.",
    ),
    "flips_concentration": Caption(
        "knows",
        "How concentrated the knowledge is",
        "Entropy of positive flips over classes against their number; classes that hold given shares of the flips"
        "{similar}.",
        "Left: points below the grey line are teachers whose extra knowledge lies in fewer classes than chance would "
        "explain. {middle}: few classes, below the grey strokes, hold the flips of a specialist.{resemble}",
    ),
    "flips_by_class": Caption(
        "knows",
        "Where the knowledge lies",
        "Positive flips of every class for up to three pairs: the weaker teacher with most flips, the most "
        "concentrated and the most uniform.",
        "Few high bars mean that the teacher is a specialist: what it knows better lies in a few classes. The pairs "
        "are chosen by rule: the weaker teacher with the most positive flips; then, among the pairs with at least "
        "the median number of flips, the lowest and the highest entropy over classes.",
    ),
    "delta_by_method": Caption(
        "works",
        "What each method does to {metric}",
        "Distribution of transfer deltas over all pairs and over pairs with a weaker teacher, one row per method, "
        "with mean, success rate and number of pairs.",
        "Every point is a pair: the {gained} that its student gained (right of zero) or lost (left of zero). Orange "
        "points left of zero are students that a weaker teacher made worse. Compare every method with the grey "
        "controls, which have no teacher: methods without labels with `self`, methods with labels with "
        "`finetune`.",
    ),
    "success_by_method": Caption(
        "works",
        "For how many models it works",
        "Success rates of every method: one dot per student over its teachers, and one per teacher over its "
        "students, with medians and quartiles.",
        "In the left panel, a dot at 100 % is a student that gained from every one of its teachers, and a dot at 0 % "
        "a student that gained from none. A median hides students that always lose: look for dots far to the left.",
    ),
    "delta_vs_accuracy": Caption(
        "whom",
        "Who gains from whom",
        "Transfer delta of every pair against the {metric} of its teacher minus that of its student, one panel per "
        "method, with the mean of the quarter of the pairs that gains most in every bin.",
        "In the shaded region the teacher is the weaker model. Points along the dashed line are students that became "
        "as good, or as bad, as their teacher; points above zero in the shade are students that gained although "
        "their teacher was weaker. A control's points show how much of that needs no teacher at all.",
    ),
    "teacher_share": Caption(
        "whom",
        "Who teaches how much",
        "Share of the transfer {taught} that the teacher teaches, for every pair, against the {metric} difference.",
        "Where a method divides the {taught} between teacher and student, a better teacher should get more of "
        "them; a weaker one should get few, those that it knows better. Above the grey line the teacher teaches most "
        "of them.",
    ),
    "delta_by_kind": Caption(
        "whom",
        "Kinds of students and teachers",
        "Mean transfer delta by kind of the student and of the teacher, and success rate by kind of the student.",
        "Intervals that are wide or missing rest on few models: a kind with one model shows that model, not its kind.",
    ),
    "delta_by_family": Caption(
        "whom",
        "Families of students and teachers",
        "Mean transfer delta by family of the student and of the teacher, and success rate by family of the student.",
        "The number of models behind every row stands under its name. A family with one model is that model: its "
        "interval shows how its pairs differ, not how other models of the family would do.",
    ),
    "transfer_rate_vs_size": Caption(
        "whom",
        "How much of the teacher’s knowledge arrives, by size of the student",
        "Transfer rate of every student, mean over its teachers, against its parameters, one panel per method.",
        "The transfer rate is {rate}. What a control reaches comes without a teacher: only what a method has beyond "
        "that was taught.",
    ),
    "predictor_ladder": Caption(
        "predicts",
        "How well gains can be predicted",
        "Held-out R² and weighted Kendall τ of every predictor, simplest first, for new students, new teachers and "
        "pairs of both.",
        "From top to bottom, predictors know more about the two models. A predictor is worth its properties where it "
        "lies clearly right of those above it; nothing lies right of the dotted ceiling except by chance. R² judges "
        "the predicted size of the gain, τ only the order of a student’s teachers, the best ones weighing most.",
    ),
    "property_effects": Caption(
        "predicts",
        "Which properties correlate with the gain",
        "Effect of every property on the transfer delta with 95 % intervals, alone and at equal {metric} difference, "
        "one panel per method.",
        "A filled mark is a property that correlates with the gain beyond chance, corrected for all properties "
        "tried. Grey bars are the intervals of the usual analysis, which takes pairs for independent: where they "
        "exclude zero and the coloured line does not, that analysis would have claimed too much.",
    ),
    "predicted_vs_measured": Caption(
        "predicts",
        "Predictions beside outcomes",
        "Measured transfer delta of every pair against the one predicted from other students and teachers.",
        "Points on the dashed line came out as predicted. The predictor is the one that does best on students left "
        "out of its fit; a flat cloud means that it knows little.",
    ),
    "several_teachers": Caption(
        "several",
        "Several teachers together",
        "Mean transfer delta of every method with several teachers, beside one of the same teachers and the best.",
        "A method with several teachers is worth its budget where it lies right of the square. The triangle is the "
        "best of the same teachers alone, which is known only afterwards.",
    ),
    "pictures": Caption(
        "works",
        "What transfer does to {example}s",
        "Test {example}s with their truth, {seen}; for the trainings with the highest, the median and the lowest "
        "delta.",
        "The trainings are chosen by their delta, the {example}s by {why} before: read them as examples of what a "
        "number stands for, not as typical. {marked}.",
    ),
    "amalgamation": Caption(
        "amalgamation",
        "One student for the classes of several teachers",
        "The {metric} of each method with its standard error, on all classes and on those of each teacher.",
        "`cfl` and `kd` learn from the teachers alone, without labels; `supervised` is the control with labels. What "
        "common features add is the paired difference to `kd`, beside the values. `teachers` answer each among its "
        "own classes; the ensembles choose among all of them, as the student must.",
    ),
    "returns": Caption(
        "flow",
        "What students reach, and how soon",
        "{metric} of each method's students over the actions of their training, with every seed, and on test at the "
        "end, by experiment.",
        "A teacher helps where a line rises earlier than that of `scratch`, or ends higher. `flow_untrained` has "
        "teachers that know nothing: what it gains is no knowledge. Where seeds scatter more than methods differ, "
        "these seeds do not tell which is better.",
    ),
    "flow": Caption(
        "flow",
        "Whether the flow helps, and when the teachers fade",
        "{above}The weights of the student's own features and of its teachers' over time, and the student's {metric} "
        "with its teachers and by itself.",
        "{beside}The teachers' weights fall and the student's own rises to one. Where the two curves at the right meet "
        "while the upper one holds, the student has taken over what its teachers gave.",
    ),
}


OF_ANALYSIS = (
    *("success_by_method", "delta_vs_accuracy", "delta_by_kind", "delta_by_family"),
    *("predictor_ladder", "property_effects", "predicted_vs_measured", "several_teachers"),
)
"""Figures that show tables of the analysis too; all others are drawn while it runs."""


def chosen(details: Collection[str], optional: Collection[str], plays: bool) -> list[str]:
    """Figures of a study.

    Args:
        details: those of the optional tables that it has.
        optional: all optional tables; a figure of the same name is drawn from one.
        plays: whether its models are policies, of which no table of pairs is there.
    """
    return [name for name in CAPTIONS if name in details or (name not in optional and not plays)]
