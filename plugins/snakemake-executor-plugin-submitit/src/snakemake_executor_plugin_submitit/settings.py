"""Settings, given on the command line (``--submitit-…``) or in a profile (``submitit-…:``)."""

from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

CLUSTERS = ("slurm", "local", "debug")
NESTED = ("always", "unless-literal", "unless-shell")


def _option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


# No `from __future__ import annotations` here: Snakemake reads the types of these fields when it runs.
@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of the executor; each field becomes ``--submitit-<name>``."""

    cluster: str = _option(
        "slurm",
        "Where jobs run: slurm; local (processes of this machine, as many as its CPUs, `--cores` and GPUs allow); "
        "debug (one after the other, in the foreground).",
        choices=list(CLUSTERS),
    )
    logdir: str = _option(
        ".snakemake/submitit",
        "Folder of the logs, a subfolder per run, a file per job. The compute nodes must see it under the same path.",
    )
    keep_runs: int = _option(
        0, "When a run starts, delete all logs except those of this many latest runs; 0 keeps all."
    )
    array_size: int = _option(0, "Most jobs in one array; 0 for the site's MaxArraySize.")
    parallel: int = _option(0, "Most jobs of one array (local: of all) that run at once; 0 for no limit.")
    poll_seconds: int = _option(5, "Seconds between two polls while jobs change.")
    poll_max_seconds: int = _option(60, "Seconds between two polls when nothing has changed for long.")
    grace_seconds: int = _option(
        60, "Seconds that files may need to appear here or on a node (slow shared file systems)."
    )
    requeues: int = _option(
        0,
        "How often a job that reaches its time limit returns to the queue to continue from its own checkpoint; "
        "the resource `requeues` of a rule overrides it. Preempted jobs always return.",
    )
    signal_delay: int = _option(
        90, "Seconds before the time limit at which a job is told to write its checkpoint (SLURM may be 60 s early)."
    )
    nested: str = _option(
        "unless-literal",
        "For which jobs a second Snakemake starts on the node: always; unless-literal (not for rules that are only a "
        "literal shell command of input, output, log, wildcards and threads); unless-shell (not for those either whose "
        "command has parameters, resources, variables of the Snakefile or a prefix: these have the values of this "
        "machine). A Snakefile that does something itself on the node (sets variables, makes folders) needs it always.",
        choices=list(NESTED),
    )
    sbatch: str = _option("", "Further flags for every submission, such as '--exclude=node1 --mail-type=FAIL'.")
    setup: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Shell lines that run on the node before each job, such as 'module load cuda'.",
            "nargs": "+",
        },
    )
    on_end: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rules for endings, as ENDING=RULE. Endings: code-error, timed-out, out-of-memory, preempted, "
            "node-failure, cancelled, unseen-files, lost, submission-failed. Rules: retry:N (up to N times, whatever "
            "the workflow says), workflow (the workflow's retries), fail. Default: preempted=retry:20 "
            "node-failure=retry:3 unseen-files=retry:1 lost=retry:1 cancelled=fail submission-failed=fail, and "
            "workflow for the others.",
            "nargs": "+",
        },
    )
