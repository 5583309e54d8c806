"""Requested resources of a job, read from its Snakemake resources."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

# Alternative names of resources; those with `slurm_` are from snakemake-executor-plugin-slurm.
_ALIASES = {
    "partition": ("partition", "slurm_partition"),
    "account": ("account", "slurm_account"),
    "qos": ("qos", "slurm_qos"),
    "constraint": ("constraint", "slurm_constraint"),
    "gpus": ("gpus", "gpu"),
    "gpu_type": ("gpu_type", "gpu_model"),
    "extra": ("sbatch", "slurm_extra"),
}


# Flags of `sbatch` that the executor sets itself, and their replacements.
_OWNED = {
    "account": "the resource account",
    "array": "nothing: equal jobs are submitted as arrays",
    "clusters": "nothing: jobs go to the cluster of this machine's own commands",
    "constraint": "the resource constraint",
    "cpus-per-task": "threads or the resource cpus_per_task",
    "error": "--submitit-logdir",
    "gpus": "the resource gpus",
    "gpus-per-node": "the resource gpus",
    "gpus-per-task": "the resource gpus",
    "job-name": "nothing: the executor finds its jobs by their names",
    "mem": "the resource mem_mb",
    "mem-per-cpu": "the resource mem_mb_per_cpu",
    "nodes": "nothing: a job runs on one node",
    "ntasks": "nothing: a job is one task",
    "ntasks-per-core": "nothing: a job is one task",
    "ntasks-per-gpu": "nothing: a job is one task",
    "ntasks-per-node": "nothing: a job is one task",
    "ntasks-per-socket": "nothing: a job is one task",
    "open-mode": "--submitit-logdir",
    "output": "--submitit-logdir",
    "parsable": "nothing: the executor reads what sbatch prints",
    "partition": "the resource partition",
    "qos": "the resource qos",
    "quiet": "nothing: the executor reads what sbatch prints",
    "signal": "--submitit-signal-delay",
    "test-only": "snakemake --dry-run",
    "time": "the resource runtime",
    "wait": "nothing: the executor waits for its jobs",
    "wrap": "the rule's own command",
}
# Flags that are accepted with the value that the executor sets anyway.
_ONE = ("nodes", "ntasks", "ntasks-per-node")


@dataclass(frozen=True)
class Request:
    """Resources of one job; jobs with equal requests can be submitted as one array.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        gpu_type: The site's name of a GPU type; empty means any.
        mem_mb: Memory in MiB; 0 means the partition's default.
        mem_mb_per_cpu: Memory per core in MiB, instead of ``mem_mb``.
        minutes: Time limit; 0 means the partition's default.
        partition: Partition; empty means the default one.
        account: Account to charge.
        qos: Quality of service.
        constraint: Node features.
        requeues: Time-outs after which the job still returns to the queue.
        extra: Further ``sbatch`` flags as (name, value) pairs, True for a flag without a value.
        avoid: Nodes that the job is not sent to.
    """

    cpus: int = 1
    gpus: int = 0
    gpu_type: str = ""
    mem_mb: int = 0
    mem_mb_per_cpu: int = 0
    minutes: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    requeues: int = 0
    extra: tuple[tuple[str, str | bool], ...] = ()
    avoid: tuple[str, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """Convert the request to parameters of submitit's ``SlurmExecutor.update_parameters``."""
        values = asdict(self)
        found: dict[str, Any] = {
            # None omits the flag; submitit's default is five minutes
            "time": self.minutes or None,
            "cpus_per_task": self.cpus,
            # since 22.05 a step no longer inherits the CPUs of its job; on a whole node (--exclusive) it would start as
            # many tasks as fit
            "srun_args": [f"--cpus-per-task={self.cpus}", "--ntasks=1"],
            # sites that track workload keys refuse unknown ones
            "wckey": None,
        }
        found |= {key: values[key] for key in ("partition", "account", "qos", "constraint") if values[key]}
        if self.gpus:
            found["gpus_per_node"] = f"{self.gpu_type}:{self.gpus}" if self.gpu_type else self.gpus
        flags = dict(self.extra)
        if "cpus-per-gpu" in flags:  # SLURM accepts only one of the two
            found |= {"cpus_per_task": None, "srun_args": ["--ntasks=1"]}
        if "mem-per-gpu" in flags:
            pass
        elif self.mem_mb_per_cpu:
            found["mem_per_cpu"] = f"{self.mem_mb_per_cpu}M"
        elif self.mem_mb:
            found["mem"] = f"{self.mem_mb}M"
        if self.avoid:
            flags["exclude"] = ",".join([*([str(flags["exclude"])] if "exclude" in flags else []), *self.avoid])
        if flags:
            found["additional_parameters"] = flags
        return found


def parse_flags(text: str) -> tuple[tuple[str, str | bool], ...]:
    """Parse ``--name=value`` and ``--name`` flags of ``sbatch`` to sorted pairs; of equal names the last one counts.

    Raises:
        ValueError: A flag in another form, or one that the executor sets itself.
    """
    pairs: dict[str, str | bool] = {}
    for word in shlex.split(text):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ValueError(f"sbatch flag {word!r} in {text!r}: write --name=value or --name")
        owned = _owned(name)
        if owned in _ONE and value in ("1", "1-1"):
            continue
        if owned:
            raise ValueError(f"sbatch flag {word!r}: the executor sets --{owned} itself; use {_OWNED[owned]}")
        if name == "export" and not value.split(",")[0] == "ALL":
            raise ValueError(f"sbatch flag {word!r}: jobs need the environment of Snakemake; write --export=ALL,…")
        pairs[name] = value if equals else True
    return tuple(sorted(pairs.items()))


def _owned(name: str) -> str:
    """Return the executor's own flag that ``sbatch``, which accepts abbreviations, reads from a name; empty if none."""
    return name if name in _OWNED else next((flag for flag in _OWNED if flag.startswith(name)), "")


def read(
    resources: Mapping[str, Any],
    threads: int,
    requeues: int = 0,
    flags: str = "",
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> Request:
    """Read the request of a job.

    Memory is the larger of ``mem_mb`` and ``mem_mb_per_cpu`` times the cores, so that a retry may raise either.

    Args:
        resources: The job's Snakemake resources.
        threads: The job's threads.
        requeues: Default of the resource `requeues`.
        flags: ``sbatch`` flags of every job; the job's own flags override them.
        defaults: Partition, account, and so on, for resources that are not set.

    Raises:
        ValueError: A resource has an invalid value, in one line.
    """

    def text(name: str) -> str:
        values = (resources.get(alias) for alias in _ALIASES[name])
        return next((str(value) for value in values if value not in (None, "")), defaults.get(name, ""))

    def number(name: str, default: int = 0, value: Any = None) -> int:
        value = resources.get(name) if value is None else value
        if value in (None, ""):
            return default
        try:
            return int(value)
        except (TypeError, ValueError):
            raise ValueError(f"resource {name}={value!r} must be a whole number") from None

    gpus, gpu_type = text("gpus"), text("gpu_type")
    if ":" in gpus:  # gpus="a100:2"
        gpu_type, _, gpus = gpus.rpartition(":")
    count, cpus = number("gpus", value=gpus or 0), max(1, threads, number("cpus_per_task"))
    if gpu_type and not count:
        raise ValueError(f"resource gpu_type={gpu_type!r} requests a GPU type, but gpus is {gpus or 0}")
    memory, per_cpu = number("mem_mb"), number("mem_mb_per_cpu")
    extra = parse_flags(f"{flags} {text('extra')}")
    return Request(
        cpus=cpus,
        gpus=count,
        gpu_type=gpu_type,
        mem_mb=memory,
        mem_mb_per_cpu=per_cpu if per_cpu * cpus >= memory else 0,
        minutes=number("runtime"),
        partition=text("partition"),
        account=text("account"),
        qos=text("qos"),
        constraint=text("constraint"),
        requeues=number("requeues", requeues),
        extra=extra,
    )
