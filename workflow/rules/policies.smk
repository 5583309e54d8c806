# What the rules of a study of policies have in common.
import math

from kt import costs as guess
from kt.control import units as kt_units
from kt.stages.policies import TABLES as DETAILS
from kt.tables.of_experiments import OPTIONAL

# Networks of policies are small: a process with torch and its copies of the game.
PROCESSES = STUDY.transfer.processes
PLAIN_MB, LONGEST = site("mem_mb", 2000), site("runtime", 1440)


def memory(processes):
    return lambda wildcards, attempt: processes * PLAIN_MB * 2 ** (attempt - 1)


def minutes_of_experiment(wildcards, attempt):
    """Time limit of the job of an experiment, from the actions that its missing trainings take."""
    at = f"flow.{wildcards.experiment}"
    pace = SURVEY.pace.of(at)
    seconds = SURVEY.work[at] * pace[0] if pace and at in SURVEY.work else math.inf
    return guess.minutes(seconds, LONGEST, attempt) if seconds < math.inf else LONGEST


def experiment_of(wildcards):
    return STUDY.flow[known(wildcards.experiment, STUDY.flow)]


def teachers_weights(wildcards):
    names = experiment_of(wildcards).teachers
    return [path(name) for path in (LAYOUT.weights, LAYOUT.member) for name in names]


def tables_of(name):
    """What the job of an experiment writes."""
    return [
        LAYOUT.experiment("flow", name),
        *(LAYOUT.detail("flow", name, table) for table in DETAILS),
    ]


FIGURES = figures_of(DETAILS, OPTIONAL, plays=True)
TABLES = [LAYOUT.table(name) for name in ("zoo", "transfers", *DETAILS)]
