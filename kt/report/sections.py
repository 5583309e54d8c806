"""Sections of the report between the answer and the appendix, one per question of a reader: the only list of them.

A section is a function from the tables to its words and grids. Its figures are those whose caption names it
(``kt/figures/captions.py``). A section without rows and figures is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kt.analysis.answer import knowledge
from kt.analysis.deltas import Gain, records
from kt.analysis.outcomes import gather
from kt.analysis.recommend import CANNOT_TELL, Advisor
from kt.analysis.summary import identity, limits
from kt.analysis.wording import amount, begun, counted, examples, number, over, plural, predictor_words
from kt.errors import listed
from kt.figures.tables import Tables
from kt.report import evidence, grids, policies
from kt.report.grids import Grid


class Facts(NamedTuple):
    """Tables and comparisons that sections are made from.

    Attributes:
        tables: the tables.
        compared: every teaching method over all pairs that has a control.
        weaker: the same over pairs with a weaker teacher.
        method: the method that the answer is about; None where no teaching method finished.
        equal_within: a teacher this close to its student, in units of the metric, counts as equal.
    """

    tables: Tables
    compared: list[Gain]
    weaker: list[Gain]
    method: str | None
    equal_within: float


class Part(NamedTuple):
    """The words before a section's tables, the tables, and the words after them."""

    before: list[str]
    grids: list[Grid]
    after: list[str]


class Section(NamedTuple):
    """A section: its anchor, heading, entry in the list of contents, and what makes it."""

    name: str
    heading: str
    entry: str
    make: Callable[[Facts], Part]


def _knows(facts: Facts) -> Part:
    bound = "Positive flips are measured before any transfer: they are the most that a teacher could teach."
    return Part([knowledge(facts.tables.inputs, facts.equal_within), bound], [], [])


def _works(facts: Facts) -> Part:
    task = facts.tables.task
    shown = [grids.summary(facts.tables)]
    if facts.compared:
        shown.append(evidence.beside_controls(facts.compared, facts.weaker, task))
    taught = (
        f" Taught errors: of the {plural(task.example)} that the student got right and the teacher gets wrong, the"
        " share that the student then gets wrong with the teacher’s class, less the same share of `self`."
        if task.has_classes and not task.dense
        else ""
    )
    return Part(
        [],
        shown,
        [
            "A pair’s delta is first averaged over its seeds. Success is the share of pairs whose delta is above zero."
            f" A teacher is weaker or stronger if its {task.metric.name} differs from the student’s by more than"
            f" {amount(facts.equal_within, task)}. Standard errors are over pairs and robust to pairs that share a"
            f" model; they leave out that the {over(task)} are a sample. Controls have no teacher: one"
            " training per student and seed, counted for each of the student’s pairs. Methods with labels are compared"
            " with `finetune`, the others with `self`. Clear is more than two standard errors, for each method by"
            f" itself, without correction for their number.{taught} Select a heading to sort.",
        ],
    )


def _whom(facts: Facts) -> Part:
    return Part(
        ["Does it matter who teaches whom? The table splits the differences between pairs by student and teacher."],
        [evidence.variance(facts.tables)],
        [
            "Variance components of the crossed design students × teachers, estimated by moments. Where the student’s"
            " share is large, gains mostly depend on how much room a student has, with any teacher."
        ],
    )


def _predicts(facts: Facts) -> Part:
    return Part(
        [
            "Properties of the two models, and of their predictions before any transfer, beside the gain. Pairs that"
            " share a model are not independent: the naive errors below ignore that, the robust errors allow for it."
            " Bootstrap intervals resample models; permutations shuffle models’ labels.",
            identity(facts.tables.task),
        ],
        [evidence.ladder(facts.tables), evidence.effects(facts.tables), evidence.importances(facts.tables)],
        [
            "R² is measured against the mean of the pairs that the predictor was fitted on, so that a constant has 0."
            " Chance of the seeds limits it to the ceiling. The gain is the whole delta, part of which the student"
            " would have reached without a teacher: a property that correlates with it may only measure how much room"
            " the student had. These are associations: models were found, not assigned."
        ],
    )


def _recommend(facts: Facts) -> Part:
    tables, method = facts.tables, facts.method
    if method is None:
        return Part([], [], [])
    advisor = Advisor(tables.inputs, method, tables=tables.analysis)
    judged, first = advisor.judged[method], evidence.recommended(tables, advisor)
    before = [
        "What is measured comes first; for the other teachers a predictor stands in, where it does better than the"
        " average gain on students left out of its fit. `kt recommend --student NAME` gives the same numbers for every"
        " teacher and method, with intervals."
    ]
    if not judged.why_not:
        how = f"{predictor_words(judged.rung, tables.task)} (R² {number(judged.r2, 2)} on students left out of the fit)"
        before.append(f"For `{method}`, the predictor is {how}.")
        return Part(before, [first, evidence.afterwards(tables, method)], [])
    if any(CANNOT_TELL in cell.text for row in first.rows for cell in row):
        before.append(
            f"For `{method}`, these pairs do not tell which of the teachers without a measurement is best:"
            f" {judged.why_not}. `kt next --budget HOURS` names the pairs whose transfer would change that most."
        )
    return Part(before, [first], [])


def _several(facts: Facts) -> Part:
    return Part([], [evidence.several(facts.tables)], ["A method with several teachers costs several trainings."])


def _amalgamation(facts: Facts) -> Part:
    grid = grids.amalgamation(facts.tables)
    return Part(
        ["Teachers that know some classes each, and one new student for all of these classes, taught without labels."],
        [grid] if grid else [],
        [
            "`teachers` answer among their own classes only, which is easier than choosing among all; `supervised` has"
            f" the labels of the transfer {plural(facts.tables.task.example)}, the others have none."
        ],
    )


def _flow(facts: Facts) -> Part:
    if facts.tables.task.plays:
        table = policies.methods(facts.tables)
        return Part(
            [
                "A student that learns its own game by rewards, while hidden layers of teachers of other games flow"
                " into it, less and less. In the end it stands alone: returns are those without teachers."
            ],
            [table] if table else [],
            [],
        )
    grid = grids.flow(facts.tables)
    return Part(
        [
            "A student that learns its own task from labels, while features of teachers of other tasks flow into it,"
            " less and less. In the end it stands alone: values are those without teachers."
        ],
        [grid] if grid else [],
        [],
    )


def _models(facts: Facts) -> Part:
    zoo, task = facts.tables.zoo, facts.tables.task
    wrong = zoo.loc[zoo["acc_agrees"].eq(False), "name"].tolist() if "acc_agrees" in zoo else []
    after = []
    if zoo["ece"].notna().any():
        after.append(
            "The calibration error (15 bins of equal width) measures how far confidence is from accuracy. Methods that"
            " choose by confidence, such as `kl_dp_unsup`, trust an overconfident teacher too much."
        )
    if (some := zoo["classes"].notna()).any():
        names = facts.tables.class_names
        known = (
            f"{row['name']} ({listed(names[label] if names else str(label) for label in row['classes'])})"
            for row in records(zoo[some])
        )
        after.append(f"Specialists know some classes only, and are measured on these: {'; '.join(known)}.")
    if facts.tables.task.dense:
        after.append(
            f"{begun(task.metric.name)} comes from the pixels of all {plural(examples(task))} together, its standard"
            f" error from how much each {task.example} moves it. Pixels without a truth count nowhere."
        )
    if task.cluster:
        after.append(
            f"Standard errors are over {over(task)}: {plural(task.example)} of one {task.cluster} are no independent"
            " sample."
        )
    if wrong:
        after.append(f"The measured {task.metric.name} differs from the published one: {', '.join(wrong)}.")
    return Part([], grids.zoo(facts.tables), after)


def _pairs(facts: Facts) -> Part:
    flips = "pixel flips" if facts.tables.task.dense else "positive flips"
    concentrated = f" A low class entropy means that the {flips} lie in few classes."
    return Part(
        [],
        [*grids.top_pairs(facts.tables), *grids.classes_of_pairs(facts.tables)],
        [
            f"`kt pair TEACHER STUDENT` shows any pair: flips{' by class' * facts.tables.task.has_classes},"
            f" {plural(facts.tables.task.example)}, measures, and deltas beside their controls."
            " Negative flips are positive flips with the two models exchanged; the transfer rate is the share of the"
            f" teacher’s positive flips that the student has learnt.{concentrated * facts.tables.task.has_classes}"
            " Extremes of many noisy numbers look larger than they are: expect these pairs to be less extreme on new"
            f" {plural(facts.tables.task.example)}."
        ],
    )


def _failures(facts: Facts) -> Part:
    grid = grids.failures(facts.tables)
    return Part([], [grid] if grid else [], ["Failed trainings are left out of every number."])


def _limits(facts: Facts) -> Part:
    if not any(len(frame) for frame in facts.tables.analysis.values()):
        return Part([], [], [])
    inputs = facts.tables.drawn
    lines = limits(facts.tables.analysis, inputs, gather(inputs))
    models = counted(len(facts.tables.compared), "model")
    first = f"One study of {models} holds for these models and {plural(facts.tables.task.example)}. Unknown remain:"
    return Part([first, *(f"• {line}" for line in lines)], [], [])


SECTIONS = (
    Section("knows", "What do models know that others do not?", "Complementary knowledge", _knows),
    Section("works", "Does it work?", "Does it work?", _works),
    Section("whom", "From whom, and to whom?", "From whom?", _whom),
    Section("predicts", "What predicts the gain?", "What predicts it?", _predicts),
    Section("recommend", "Which teacher to choose?", "Which teacher?", _recommend),
    Section("several", "Are several teachers better than one?", "Several teachers", _several),
    Section("amalgamation", "Can one student take over several specialists?", "Several specialists", _amalgamation),
    Section("flow", "Does it help to learn with teachers of other tasks?", "Knowledge flow", _flow),
    Section("zoo", "The models", "Models", _models),
    Section("pairs", "The pairs that stand out", "Pairs", _pairs),
    Section("failures", "What failed", "Failures", _failures),
    Section("limits", "What these numbers cannot show", "Limits", _limits),
)

SPEAKS_FOR_ITSELF = {"limits"}
"""Sections of words alone."""
