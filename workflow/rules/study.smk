import functools
import gc
import os
import sys
from inspect import signature
from pathlib import Path

from snakemake import common
from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile, apply_wildcards

from kt import progress, status, store
from kt.errors import KtError, unknown
from kt.figures.captions import CAPTIONS, OF_ANALYSIS
from kt.figures.captions import chosen as figures_of
from kt.layout import Layout
from kt.status import index as kt_index
from kt.status import screen as kt_screen
from kt.study import load as kt_config

if workflow.is_main_process:
    # The plan of a large study only grows; the collector would look through all of it again and again. A run enables it.
    gc.disable()

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
    STUDY = kt_config.load_any(CONFIG)
except KtError as error:
    sys.exit(str(error))

# Relative as the configuration has it, though the folder may lie above: records are found by these names.
LAYOUT = Layout(
    STUDY.layout.root
    if Path(STUDY.results.written).expanduser().is_absolute()
    else Path(os.path.relpath(STUDY.results))
)
LOGS = LAYOUT.root / "logs"
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


def site(name, otherwise):
    """A whole number among the profile's `default-resources`."""
    given = (workflow.resource_settings.default_resources or {}).get(name)
    # Without a profile, jobs are handed Snakemake's own defaults: formulas of a rule's input, of no use here.
    value = None if given is None or given.is_evaluable() else given.value
    return value if isinstance(value, int) else otherwise


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


def files_of_figures(names):
    """The files of figures; Snakemake's own report shows the pictures."""
    return [in_report(name) for name in names] + [
        LAYOUT.figures / f"{name}.{kind}" for name in names for kind in ("pdf", "csv")
    ]


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


FORMER = {"weights": "member", "predictions": "member"}


def check_profile():
    """Tell of a profile's settings for rules that do not exist, which Snakemake silently leaves out."""
    names = [known.name for known in workflow.rules]
    given = {
        *workflow.resource_settings.overwrite_resources,
        *workflow.resource_settings.overwrite_threads,
        *workflow.group_settings.overwrite_groups,
    }
    for name in sorted(given - set(names)):
        if FORMER.get(name, name) not in given:
            sys.exit(f"profile: {name!r} is now part of the rule {FORMER[name]!r}")
        if name not in FORMER and workflow.is_main_process:
            print(f"kt: profile: {unknown('rule', name, names)}", file=sys.stderr)


def recorded(path):
    """Whether Snakemake has a record of a file."""
    return workflow.persistence.params(IOFile(str(path))) is not None


@functools.cache
def elsewhere():
    """Whether the results were made elsewhere: they are there, and Snakemake has no record of the first of them."""
    first = LAYOUT.games if STUDY.plays else LAYOUT.data / "meta.json"
    return first.exists() and not recorded(first)


@functools.cache
def from_other(path):
    """Whether a file of another configuration is taken for one of this, as Snakemake has no record of it."""
    return not recorded(path) and status.from_other(STUDY, LAYOUT, Path(path))


@functools.cache
def tell_of(folder):
    print(
        f"kt: {folder}: made elsewhere; what is of another configuration, or cannot be read, is made again",
        file=sys.stderr,
    )


def ready_to_plan():
    """Note the parameters of the rules' functions, and of the method that calls those of resources: Snakemake asks for
    them many times per job, and looking them up takes longer than most of the functions. What was made so far stays.
    """
    note = getattr(common, "overwrite_function_params", None)  # of newer versions
    for known in workflow.rules if note else ():
        resources = list(known.resources.values())
        made = [getattr(resource, "_evaluator", None) for resource in resources]
        for function in filter(callable, [*known.input, *known.params, *made]):
            note(function, signature(function).parameters)
        for call in {getattr(resource, "evaluate", None) for resource in resources}:
            if call:
                note(call.__func__, signature(call).parameters)
    gc.freeze()


def again(output):
    """Input function that adds no input: plans a job again whose output holds rows of damaged records, or of trainings
    whose students are to be kept and are not; or that was made from another configuration, as far as the file tells,
    in a folder that came without Snakemake's records.

    The job then sets these records aside and recomputes them, or trains these students again. Reading the Snakefile,
    for whatever purpose, changes nothing; and as neither inputs nor parameters differ, the job has no reason to run
    once more afterwards.
    """

    def no_files(wildcards):
        if not workflow.is_main_process or not (DAMAGED or elsewhere()):
            return []
        path = apply_wildcards(str(output), dict(wildcards.items()))
        if elsewhere() and from_other(path):
            tell_of(LAYOUT.root)
            workflow.dag.forcefiles.add(path)
        if path in DAMAGED:
            workflow.dag.forcefiles.add(path)
        return []

    return no_files


# Functions without arguments that a run calls before its first job.
AT_START = []


onstart:
    # Held until this process ends, however it ends; so no lock is ever left behind.
    try:
        workflow.kt_lock = store.lock(LAYOUT.root)
    except KtError as error:
        sys.exit(str(error))
    gc.freeze()
    gc.enable()
    progress.end_stages_too()
    for begin in AT_START:
        begin()
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
