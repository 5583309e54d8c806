import gc
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import apply_wildcards

from kt import pairs as kt_pairs
from kt import predictions as kt_predictions
from kt import progress, status, store
from kt.data.datasets import truth_files
from kt.figures.captions import CAPTIONS
from kt.errors import KtError, unknown
from kt.layout import Layout
from kt.status import index as kt_index
from kt.status import screen as kt_screen
from kt.study import load as kt_config
from kt.study import units as kt_units
from kt.tables.of_analysis import ANALYSIS
from kt.tables.of_study import OPTIONAL
from kt.transfer import groups as kt_groups

if workflow.is_main_process:
    # The plan of a large study only grows; by default the collector looks through all of it again and again.
    gc.set_threshold(100_000, 50, 100)

# The study: `--configfile my.yaml` replaces config.yaml, it is not merged into it.
CONFIGS = list(workflow.config_settings.configfiles) or [Path("config.yaml").absolute()]
if len(CONFIGS) > 1 or workflow.config_settings.config:
    raise WorkflowError(
        "give one --configfile and no --config: a study is one file, so that it can be repeated"
    )
FOLDER, CONFIG = CONFIGS[0].parent, CONFIGS[0].name
if workflow.overwrite_workdir and not FOLDER.samefile(os.curdir):
    sys.exit(
        f"--directory: {workflow.overwrite_workdir}: leave it out; paths of a study are relative to its configuration's "
        f"folder ({FOLDER}), which also keeps Snakemake's records"
    )


# Wherever Snakemake is called, a study has the same paths, and the same records of what was made and how.
workdir: FOLDER


try:
    STUDY = kt_config.load(CONFIG)
except KtError as error:
    sys.exit(str(error))

# Relative as the configuration has it, though the folder may lie above: records are found by these names.
LAYOUT = Layout(
    STUDY.layout.root
    if Path(STUDY.results.written).expanduser().is_absolute()
    else Path(os.path.relpath(STUDY.results))
)
LOGS = LAYOUT.root / "logs"
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

# The interpreter that runs Snakemake also runs the stages, whether or not its folder is on the PATH. A shell that is
# told to end waits for its stage, which writes a checkpoint first: nothing of a run outlives it.
shell.prefix(
    "set -euo pipefail; trap 'exit 143' INT TERM HUP; "
    'export KT_CONFIG={CONFIG:q}; kt() {{ {sys.executable:q} -m kt "$@"; }}; '
)


wildcard_constraints:
    # not a list of all names, which Snakemake would look through for every file: a thousand names are 20 kB
    model="[^/]+",
    student="[^/]+",
    chunk=r"\d+",
    split="validation|test",
    experiment="[^/]+",


def known(name, names):
    """A name in a path that somebody asked for, where it is one of the study's."""
    if name not in names:
        raise KtError(unknown("model", name, names))
    return name


def member(wildcards):
    return STUDY.zoo.models[known(wildcards.model, STUDY.zoo.models)]


def recipe_of(name):
    """All that determines a member's weights and properties; only a change of these runs it again."""
    return [
        STUDY.zoo.models[name].plain(),
        STUDY.zoo.input_of(name).plain(),
        STUDY.zoo.modules,
    ]


def recipe(wildcards):
    return recipe_of(wildcards.model)


def teachers(wildcards):
    """Teachers that a job may read: all of the student's for the job that also does its controls, else its own."""
    everyone, chunk, size = (
        TEACHERS[known(wildcards.student, TEACHERS)],
        int(wildcards.chunk),
        STUDY.transfer.pairs_per_job,
    )
    return (
        everyone
        if chunk == 0 or NEEDS_SCORES
        else everyone[chunk * size : (chunk + 1) * size]
    )


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


def in_report(figure):
    """A figure as Snakemake's own report shows it: in its section, and with the words, of ours. Snakemake asks for them
    when it writes a report, as importing what makes them takes longer than reading this file.
    """

    def section(wildcards):
        from kt.report.sections import SECTIONS

        (title,) = [
            of.heading for of in SECTIONS if of.name == CAPTIONS[figure].section
        ]
        return title

    def words(wildcards):
        from kt.analysis.wording import caption_words

        caption = CAPTIONS[figure].told(caption_words(STUDY.task.words))
        return {"figure": caption.heading, "how to read it": caption.reading}

    return report(
        str(LAYOUT.figures / f"{figure}.png"),
        caption="../report/figure.rst",
        category=section,
        labels=words,
    )


# Jobs only: they have their resources from the process that started them.
SURVEY, DAMAGED = status.Survey(), set()

if workflow.is_main_process:
    SURVEY = status.survey(STUDY, LAYOUT)
    DAMAGED = {
        str(path) for path in status.tables_with(LAYOUT, SURVEY.damaged + SURVEY.again)
    }
    print(f"kt: {len(STUDY.names)} models, {SURVEY.line()}", file=sys.stderr)
    for line in kt_screen.rounds(STUDY, LAYOUT, SURVEY):
        print(f"kt: {line}", file=sys.stderr)


def again_if_damaged(output):
    """Input function that adds no input: plans a job again whose output holds rows of damaged records, or of trainings
    whose students are to be kept and are not.

    The job then sets these records aside and recomputes them, or trains these students again. Reading the Snakefile, for whatever purpose, changes
    nothing; and as neither inputs nor parameters differ, the job has no reason to run once more afterwards.
    """

    def no_files(wildcards):
        if not DAMAGED:
            return []
        path = apply_wildcards(str(output), dict(wildcards.items()))
        if path in DAMAGED:
            workflow.dag.forcefiles.add(path)
        return []

    return no_files


onstart:
    # Held until this process ends, however it ends; so no lock is ever left behind.
    try:
        workflow.kt_lock = store.lock(LAYOUT.root)
    except KtError as error:
        sys.exit(str(error))
    progress.end_stages_too()
    kt_index.update(LAYOUT.ledger)
    if logs := getattr(workflow.executor_settings, "logdir", None):
        # `kt status` may be asked from another folder, and knows nothing of the profile
        store.write_text(
            LAYOUT.cluster_logs, f"{Path(logs).expanduser().absolute()}\n"
        )


onsuccess:
    kt_index.update(LAYOUT.ledger)


onerror:
    print("kt: stopped; the same command goes on where this run ended", file=sys.stderr)
