import math
import shlex
from pathlib import Path

from kt import pairs as kt_pairs
from kt import predictions as kt_predictions
from kt import stages, store
from kt.data.datasets import truth_files
from kt.study import units as kt_units
from kt.tables.of_analysis import ANALYSIS
from kt.tables.of_experiments import OPTIONAL
from kt.transfer import groups as kt_groups

JOBS = kt_pairs.jobs(STUDY.names, STUDY.pairs, STUDY.transfer.pairs_per_job)
NEEDS_SCORES = kt_pairs.needs_scores(STUDY.pairs)
# Rounds in which each student has its jobs, where pairs are chosen from the transfers of the rounds before.
ROUNDS = (
    kt_pairs.rounds(STUDY.names, STUDY.pairs)
    if STUDY.pairs.select == "adaptive"
    else {}
)
TEACHERS = {student: [] for student in JOBS}
for teacher, student in kt_pairs.candidates(STUDY.names, STUDY.pairs):
    TEACHERS[student].append(teacher)


def recipe_of(name):
    """All in the configuration that determines a member's weights and properties."""
    return [
        STUDY.zoo.models[name].plain(),
        STUDY.zoo.input_of(name).plain(),
        STUDY.zoo.modules,
    ]


def recipe(wildcards):
    return recipe_of(wildcards.model)


def adopt_weights():
    """Take weights of a version that did not note what they were made from, where the recipe is the same, as far as
    Snakemake's records know. Without them nothing tells what these were made from.
    """
    if elsewhere():
        return
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "member":
            name = job.wildcards.model
            recorded = workflow.persistence.params(job.output[0])
            if recorded in (None, [repr(recipe_of(name))]):
                stages.adopt(STUDY, LAYOUT, name)


AT_START.append(adopt_weights)


SIZES = {}


def size_of(student):
    """Multiply-adds of a student for an image, on a scale from 0 to 1; 0 as long as they are unknown."""
    if student not in SIZES:
        try:
            macs = store.read_json(LAYOUT.member(student)).get("macs") or 0
        except KtError:
            return 0
        SIZES[student] = math.log10(1 + macs) / 20
    return SIZES[student]


def largest_first():
    """Of transfers that may begin, let those of the largest students do so: a long one that comes last works alone.
    What transfers wait for, and all else, comes before them.

    Snakemake has one priority for all jobs of a rule. All of the others grow by 1, those of transfers by less.
    """
    dag, of_rule = workflow.dag, workflow.dag.priority

    def priority(job):
        trains = job.rule.name in ("search", "transfer", "groups")
        return of_rule(job) + (size_of(job.wildcards.student) if trains else 1)

    dag.priority = priority


AT_START.append(largest_first)


def teachers(wildcards):
    """Teachers that a job may read: all of the student's for the job that also does its controls, else its own."""
    everyone = TEACHERS[known(wildcards.student, TEACHERS)]
    chunk, size = int(wildcards.chunk), STUDY.transfer.pairs_per_job
    every = chunk == 0 or NEEDS_SCORES
    return everyone if every else kt_pairs.part(everyone, chunk, size)


def pairs_table(wildcards):
    """The table of pairs that a job reads; where names alone decide, it knows its own."""
    if ROUNDS:
        return LAYOUT.round(ROUNDS[wildcards.student][int(wildcards.chunk)])
    return LAYOUT.table("pairs") if NEEDS_SCORES else []


def transfers_of_round(number):
    """Rows of the jobs of one round."""
    return [
        LAYOUT.transfer(student, chunk)
        for student, found in ROUNDS.items()
        for chunk, of_job in enumerate(found)
        if of_job == number
    ]


# As texts: a thousand models have a hundred thousand pairs, and making a path takes longer than looking it up.
LOGITS = {name: str(LAYOUT.predictions(name)) for name in STUDY.names}


def transfer_weights(wildcards):
    """Weights that a job reads: its student's, and its teachers' where they train too."""
    methods = STUDY.transfer.methods.chosen().values()
    more = not GATED and any(method.joint for method in methods)
    names = [wildcards.student, *(teachers(wildcards) if more else [])]
    return [LAYOUT.weights(name) for name in names]


GROUPS = kt_groups.count(STUDY.names, STUDY.groups.choose) if STUDY.groups else {}


def group_models(wildcards):
    student = known(wildcards.student, GROUPS)
    return kt_groups.involved(student, STUDY.names, STUDY.groups.choose)


# Teachers of every student that the search of parameters tries its candidates on.
TRIALS = STUDY.transfer.trial_pairs(STUDY.names, STUDY.pairs)


def trial_models(wildcards):
    return [wildcards.student, *TRIALS[known(wildcards.student, TRIALS)]]


def files_of(models):
    """Weights and predictions of the models that a job reads."""
    return {
        "weights": lambda wildcards: list(map(LAYOUT.weights, models(wildcards))),
        "logits": lambda wildcards: list(map(LAYOUT.predictions, models(wildcards))),
    }


# With so many pairs an edge for each makes the plan slow: transfers wait for the table of pairs instead, and that for
# the table of all models (Snakemake looks through the inputs of a rule for each file that somebody takes from it).
GATED = sum(map(len, TEACHERS.values())) > 20_000


def modified(path):
    return path.stat().st_mtime if path.exists() else 0.0


def changed(name):
    """When a member's predictions last changed, or what they are made from; 0 where there are none, or old ones."""
    sources = [LAYOUT.weights(name), Path(STUDY.zoo.models[name].checkpoint or "none")]
    path = LAYOUT.predictions(name)
    there = modified(path) if kt_predictions.current(path) else 0.0
    return there and max(there, *map(modified, sources))


CHANGED = {name: changed(name) for name in STUDY.names} if GATED else {}
RECIPES = {name: store.digest(recipe_of(name)) for name in STUDY.names} if GATED else {}


def cached_logits(wildcards):
    names = [wildcards.student, *teachers(wildcards)]
    if GATED and workflow.is_main_process:
        done = modified(LAYOUT.transfer(wildcards.student, wildcards.chunk))
        if not done:
            return [LAYOUT.table("pairs")]
        # A job that was done is done again for the models that have changed since, or are new.
        names = [name for name in names if not 0 < CHANGED[name] <= done]
    return [LOGITS[name] for name in names]


# The detail tables of the kinds of experiments that the study has, and the pictures of a task of maps.
DETAILS = sorted({experiment.table for _, _, experiment in STUDY.each_experiment()})
if STUDY.task.spatial:
    DETAILS.append("pictures")


def experiment_tables(rule, name, experiment=None):
    """What the job of an experiment writes."""
    return [LAYOUT.experiment(rule, name), LAYOUT.details(rule, name)]


def experiment_models(rule):
    """Predictions and weights of an experiment's teachers, and the checkpoint that its student begins with."""

    def files(wildcards):
        experiment = STUDY.experiments[rule][wildcards.experiment]
        found = [
            path(name)
            for path in (LAYOUT.weights, LAYOUT.predictions)
            for name in experiment.teachers
        ]
        return found + list(filter(None, [experiment.student.checkpoint]))

    return files


def experiment_plan(rule):
    """All in the configuration that determines an experiment; only a change of these runs it again."""

    def plan(wildcards):
        experiment = STUDY.experiments[rule][wildcards.experiment]
        return [*kt_units.recipe(STUDY, experiment), STUDY.transfer.export]

    return plan
