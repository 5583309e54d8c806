"""The report's sections between the answer and the appendix, one a reader's question: the only list of them.

A section is a function from the tables to its words and grids. Its figures are those whose caption names it
(``kt/figures/captions.py``). One that has neither rows nor figures is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kt.analysis.analyse import IDENTITY
from kt.analysis.wording import counted
from kt.figures.tables import Tables
from kt.report import content, evidence
from kt.report.grids import Grid
from kt.report.verdict import Held


class Facts(NamedTuple):
    """What sections are made from.

    Attributes:
        tables: the tables.
        compared: every method against its control.
        method: the method that the answer is about; None where no teaching method finished.
        equal_within: percentage points; a teacher this close to its student counts as equal.
    """

    tables: Tables
    compared: list[Held]
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


def _works(facts: Facts) -> Part:
    grids = [content.summary(facts.tables)]
    if facts.compared:
        grids.append(evidence.against_controls(facts.compared))
    return Part(
        [],
        grids,
        [
            "A pair’s delta is first averaged over its seeds. Success is the share of pairs whose delta is above zero."
            " A teacher is weaker or stronger if its accuracy differs from the student’s by more than"
            f" {facts.equal_within:g} percentage points. Standard errors are over pairs and allow for pairs that share"
            " a model; they do not include that the test images are a sample. Controls have no teacher: one training a"
            " student and seed, counted for each of the student’s pairs. Methods that use labels must beat `finetune`,"
            " the others `self`; clear is more than two standard errors, method by method, not corrected for their"
            " number. Taught errors: of the images that the student got right and the teacher gets wrong, the share"
            " that the student then gets wrong with the teacher’s class; from it that of `self` is taken, with the same"
            " teachers and seeds. Select a heading to sort.",
        ],
    )


def _whom(facts: Facts) -> Part:
    return Part(
        ["Does it matter who teaches whom? First, how much of the differences between pairs models alone account for."],
        [evidence.variance(facts.tables)],
        [
            "Components of the crossed design students × teachers, by moments. Where the student’s share is large,"
            " gains are mostly a matter of how much room a student has, whoever teaches it."
        ],
    )


def _predicts(facts: Facts) -> Part:
    return Part(
        [
            "Properties of the two models, and of their predictions before any transfer, against the gain. Pairs that"
            " share a model are not independent: the naive errors below ignore that, two-way errors know of shared"
            " teachers and shared students, robust errors also that one model is teacher here and student there."
            " Intervals from a bootstrap resample models; permutations shuffle models’ labels.",
            IDENTITY,
        ],
        [evidence.ladder(facts.tables), evidence.effects(facts.tables), evidence.importances(facts.tables)],
        [
            "R² is measured against the mean of the pairs learned from, so that a constant has 0. The ceiling is what"
            " chance of the seeds leaves to predict. The gain is the whole delta, of which the student would have had"
            " a part without a teacher: a property that correlates with it may only say how much room the student had."
            " These are associations: models were found, not assigned."
        ],
    )


def _recommend(facts: Facts) -> Part:
    after = [
        "For a model that is in the table of models but has no transfers yet, `kt recommend --student NAME` ranks"
        " its teachers with intervals, without training; `kt next --budget HOURS` names the pairs whose transfer would"
        " teach the predictor most for its price."
    ]
    if facts.method is None:
        return Part([], [], after)
    ladder = facts.tables.analysis["ladder"]
    few = ladder[(ladder["method"] == facts.method) & (ladder["scheme"] == "students")]["hours_saved_3"].notna().any()
    before = [
        "Whether the predictor would have been any help: for every student it learned from pairs of other students and"
        " teachers only, and its first choice stands beside the best teacher, known afterwards."
    ]
    if not few:
        after.insert(0, "Time that a shortlist saves cannot be said: too few teachers a student, or no times.")
    return Part(before, [evidence.recommended(facts.tables, facts.method)], after)


def _several(facts: Facts) -> Part:
    return Part([], [evidence.several(facts.tables)], ["A method with several teachers costs several trainings."])


def _amalgamation(facts: Facts) -> Part:
    grid = content.amalgamation(facts.tables)
    return Part(
        ["Teachers that know some classes each, and one new student for all of these classes, taught without labels."],
        [grid] if grid else [],
        [
            "`teachers` answer among their own classes only, which is easier than choosing among all; `supervised` has"
            " the labels of the transfer images, which the others have not."
        ],
    )


def _flow(facts: Facts) -> Part:
    grid = content.flow(facts.tables)
    return Part(
        [
            "A student that learns its own task from labels, while features of teachers of other tasks flow into it,"
            " less and less. In the end it stands alone: accuracies are those without teachers."
        ],
        [grid] if grid else [],
        [],
    )


def _knows(facts: Facts) -> Part:
    return Part(
        [
            "Before any transfer: on which images is the teacher right and the student wrong? These positive flips are"
            " the most that a teacher could teach."
        ],
        [],
        [],
    )


def _models(facts: Facts) -> Part:
    disagree = facts.tables.zoo.get("acc_agrees")
    wrong = [] if disagree is None else facts.tables.zoo.loc[disagree.eq(False), "name"].tolist()
    after = [
        "The calibration error (15 bins of equal width) says how far confidence is from accuracy. Methods that choose"
        " by confidence, such as `kl_dp_unsup`, trust an overconfident teacher too much."
    ]
    if (some := facts.tables.zoo["classes"].notna()).any():
        names = ", ".join(facts.tables.zoo.loc[some, "name"])
        after.append(f"Specialists know some classes only; theirs is the accuracy on images of these: {names}.")
    if wrong:
        after.append(f"Measured accuracy disagrees with the published one: {', '.join(wrong)}.")
    return Part([], [content.zoo(facts.tables)], after)


def _pairs(facts: Facts) -> Part:
    return Part(
        [],
        content.top_pairs(facts.tables),
        [
            "Negative flips are images that the student gets right and the teacher wrong; transfer rate is the share of"
            " the teacher’s positive flips that the student gets right after transfer. A low class entropy means"
            " that the positive flips lie in few classes. Extremes of many noisy numbers look larger than they are:"
            " expect these pairs to be less extreme on new images."
        ],
    )


def _failures(facts: Facts) -> Part:
    grid = content.failures(facts.tables)
    return Part(
        [], [grid] if grid else [], ["Failed trainings are left out of every number: means are of those that finished."]
    )


def _unsaid(facts: Facts) -> Part:
    lines = evidence.unsaid(facts.tables)
    if not lines:
        return Part([], [], [])
    models = counted(len(facts.tables.compared), "model")
    return Part(
        ["One study of " + models + " answers for these models and images.", *(f"• {line}" for line in lines)], [], []
    )


SECTIONS = (
    Section("works", "Does it work?", "Does it work?", _works),
    Section("whom", "From whom, and to whom?", "From whom?", _whom),
    Section("predicts", "What predicts the gain?", "What predicts it?", _predicts),
    Section("recommend", "Whom to choose as a teacher?", "Whom to choose?", _recommend),
    Section("several", "Are several teachers better than one?", "Several teachers", _several),
    Section("amalgamation", "Can one student take over several specialists?", "Several specialists", _amalgamation),
    Section("flow", "Does it help to learn with teachers of other tasks?", "Knowledge flow", _flow),
    Section("knows", "What do models know that others do not?", "Complementary knowledge", _knows),
    Section("zoo", "The models", "Models", _models),
    Section("pairs", "The pairs that stand out", "Pairs", _pairs),
    Section("failures", "What failed", "Failures", _failures),
    Section("unsaid", "What cannot be said", "What cannot be said", _unsaid),
)

SPEAKS_FOR_ITSELF = {"unsaid"}
"""Sections of words alone."""
