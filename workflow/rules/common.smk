import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kt import config as kt_config
from kt import pairs as kt_pairs
from kt import status, store
from kt.errors import KtError
from kt.layout import Layout

# The study: `--configfile my.yaml` replaces config.yaml, it is not merged into it.
CONFIGS = [str(path) for path in workflow.config_settings.configfiles] or [
    "config.yaml"
]
if len(CONFIGS) > 1 or workflow.config_settings.config:
    raise WorkflowError(
        "give one --configfile and no --config: a study is one file, so that it can be repeated"
    )
CONFIG = CONFIGS[0]

try:
    STUDY = kt_config.load(CONFIG)
except KtError as error:
    sys.exit(str(error))

LAYOUT = Layout(Path(STUDY.results))
LOGS = LAYOUT.root / "logs"
JOBS = kt_pairs.jobs(STUDY.names, STUDY.pairs, STUDY.transfer.pairs_per_job)
NEEDS_SCORES = isinstance(STUDY.pairs, kt_pairs.Top)
TEACHERS = {student: [] for student in JOBS}
for teacher, student in kt_pairs.candidates(STUDY.names, STUDY.pairs):
    TEACHERS[student].append(teacher)

# The interpreter that runs Snakemake also runs the stages, whether or not its folder is on the PATH.
shell.prefix(
    'set -euo pipefail; export KT_CONFIG={CONFIG:q}; kt() {{ {sys.executable:q} -m kt "$@"; }}; '
)


wildcard_constraints:
    model="|".join(STUDY.names),
    student="|".join(STUDY.names),
    chunk=r"\d+",
    split="validation|test",


def member(wildcards):
    return STUDY.zoo.models[wildcards.model]


def recipe(wildcards):
    """All that determines a member's weights and properties; only a change of these runs it again."""
    return [
        member(wildcards).plain(),
        STUDY.zoo.input_of(wildcards.model).plain(),
        STUDY.zoo.modules,
    ]


def teachers(wildcards):
    """Teachers that a job may read: all of the student's for the job that also does its controls, else its own."""
    everyone, chunk, size = (
        TEACHERS[wildcards.student],
        int(wildcards.chunk),
        STUDY.transfer.pairs_per_job,
    )
    return (
        everyone
        if chunk == 0 or NEEDS_SCORES
        else everyone[chunk * size : (chunk + 1) * size]
    )


# As texts: a thousand models have a hundred thousand pairs, and making a path takes longer than looking it up.
LOGITS = {name: str(LAYOUT.predictions(name)) for name in STUDY.names}


def cached_logits(wildcards):
    return [LOGITS[name] for name in [wildcards.student, *teachers(wildcards)]]


if workflow.is_main_process:
    survey = status.survey(STUDY, LAYOUT)
    print(f"kt: {len(STUDY.names)} models, {survey.line()}", file=sys.stderr)
    # Snakemake does not yet know here whether this is a dry run, and a dry run changes nothing.
    dry = any(
        re.fullmatch("--dry-?run|-[a-zA-Z]*n[a-zA-Z]*", argument)
        for argument in sys.argv[1:]
    )
    if survey.damaged and not dry:
        status.forget(LAYOUT, survey.damaged, damaged=True)


onstart:
    # Held until this process ends, however it ends; so no lock is ever left behind.
    workflow.kt_lock = store.lock(LAYOUT.root)


onerror:
    print("kt: stopped; the same command goes on where this run ended", file=sys.stderr)
