"""Jobs whose shell command does on a node, without Snakemake, what it does with it."""

from __future__ import annotations

import os
import shutil
from inspect import signature
from typing import Any

from snakemake.common.tbdstring import TBDString
from snakemake.shell import MAX_ARG_LEN, shell
from snakemake.utils import QuotedFormatter, SequenceFormatter
from snakemake_interface_executor_plugins.settings import SharedFSUsage

from .payload import Shell

# Snakemake's own, unless a workflow sets another.
_STRICT = "set -euo pipefail; "
# Flags of files that matter to this machine's Snakemake only.
_FLAGS = {"ancient", "directory", "multiext", "report", "temp"}


def plain(job: Any, workflow: Any, cores: int, literal: bool) -> Shell | None:
    """Return the shell command of a job; None if a Snakemake must run on the node.

    A Snakemake on the node reads the workflow again: parameters, resources, variables of the Snakefile, the prefix of
    commands, and commands that are no literal text could have other values there.

    Args:
        job: Snakemake's job.
        workflow: Snakemake's workflow.
        cores: Cores that the job requests.
        literal: All of these need a Snakemake; else all but the last have the values of this machine.
    """
    try:
        return _plain(job, workflow, cores, literal)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None  # other values, another version of Snakemake, or an error that Snakemake reports


def _plain(job: Any, workflow: Any, cores: int, literal: bool) -> Shell | None:
    if job.is_group() or not job.is_shell or _more_than_shell(job, workflow) or not _literal(job.rule):
        return None
    if job.threads == workflow.resource_settings.cores and job.threads < cores:
        return None  # a limit of this machine, which a Snakemake that is given the cores would not know
    prefix, suffix = shell._get_process_prefix(), shell._process_suffix
    if literal and (prefix != _STRICT or suffix):
        return None
    values = {name: getattr(job, name)._plainstrings() for name in ("input", "output", "log")}
    values |= {"wildcards": job.wildcards, "threads": job.threads, "rule": job.rule.name}
    if not literal:
        if _asks_for_tmpdir(job.rule):
            return None
        # of the rule's own module; what Snakemake gives a command hides them
        function = job.rule.run_func
        own = {name: value for name, value in function.__globals__.items() if name not in function.__code__.co_varnames}
        values = {**own, "params": job.params, "resources": job.resources, **values}
    text = SequenceFormatter(" ", QuotedFormatter()).format(job.rule.shellcmd, **values)
    if TBDString() in text:
        return None  # known on the node only
    command = " ".join((prefix, text, suffix)).strip()
    if len(command.replace("'", r"'\''")) + 2 > MAX_ARG_LEN:
        return None
    records = workflow.persistence
    return Shell(
        command=command,
        threads=job.threads,
        outputs={os.path.abspath(file): file.is_directory for file in job.output},
        logs=[os.path.abspath(file) for file in job.log],
        markers=[records._record_path(records._incomplete_path, str(file)) for file in job.output],
        latency=workflow.execution_settings.latency_wait,
        keep_incomplete=workflow.execution_settings.keep_incomplete,
    )


def _asks_for_tmpdir(rule: Any) -> bool:
    """Return whether a command may depend on the folder for temporary files, which only the node knows."""
    functions = [value for value in rule.params if callable(value)]
    return "tmpdir" in rule.shellcmd or any("resources" in signature(function).parameters for function in functions)


def _literal(rule: Any) -> bool:
    """Return whether the shell command is a literal text in the Snakefile."""
    code = rule.run_func.__code__
    same = rule.shellcmd in code.co_consts and code.co_names == ("shell",)
    return same and rule.run_func.__globals__["shell"] is shell


def _more_than_shell(job: Any, workflow: Any) -> bool:
    """Return whether Snakemake does more on the node than to run a shell command."""
    resources = job.rule.resources
    flags = {flag for file in (*job.input, *job.output, *job.log) for flag, value in file.flags.items() if value}
    return bool(
        flags - _FLAGS
        or job.benchmark
        or job.is_shadow
        or "shell_exec" in resources
        or "tmpdir" not in resources
        or resources["tmpdir"].raw != "system_tmpdir"
        or shell.get_executable() != shutil.which("bash")
        or set(workflow.storage_settings.shared_fs_usage) != set(SharedFSUsage.all())
        or workflow.deployment_settings.deployment_method
        or workflow.workflow_settings.cache is not None
        or workflow.remote_execution_settings.precommand
        or workflow.spawned_job_args_factory.envvars()
    )
