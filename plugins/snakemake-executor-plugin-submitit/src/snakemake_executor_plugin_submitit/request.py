"""What a job asks of the cluster, read from its Snakemake resources."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Names that rules use for the same thing; those with `slurm_` are the ones of snakemake-executor-plugin-slurm.
_ALIASES = {
    "partition": ("partition", "slurm_partition"),
    "account": ("account", "slurm_account"),
    "qos": ("qos", "slurm_qos"),
    "constraint": ("constraint", "slurm_constraint"),
    "gpus": ("gpus", "gpu"),
    "gpu_type": ("gpu_type", "gpu_model"),
    "extra": ("sbatch", "slurm_extra"),
}


@dataclass(frozen=True)
class Request:
    """Resources of one job; jobs whose requests are equal can leave in one array.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        gpu_type: The site's name for a kind of GPU; empty means any.
        mem_mb: Memory in MiB; 0 means the partition's default.
        mem_mb_per_cpu: Memory a core in MiB, instead of ``mem_mb``.
        minutes: Time limit; 0 means the partition's default.
        partition: Partition; empty means the default one.
        account: Account to charge.
        qos: Quality of service.
        constraint: Node features.
        requeues: Time-outs after which the job still goes back to the queue.
        extra: Further ``sbatch`` flags as (name, value) pairs, True for a flag without a value.
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

    def parameters(self) -> dict[str, Any]:
        """The request in the words of submitit's ``SlurmExecutor.update_parameters``."""
        values = asdict(self)
        found: dict[str, Any] = {
            # submitit's default of five minutes would surprise; None leaves the flag out
            "time": self.minutes or None,
            "cpus_per_task": self.cpus,
            # since 22.05 a step no longer inherits the CPUs of its job
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            # sites that track workload keys refuse unknown ones
            "wckey": None,
        }
        found |= {key: values[key] for key in ("partition", "account", "qos", "constraint") if values[key]}
        if self.gpus:
            found["gpus_per_node"] = f"{self.gpu_type}:{self.gpus}" if self.gpu_type else self.gpus
        if self.mem_mb_per_cpu:
            found["mem_per_cpu"] = f"{self.mem_mb_per_cpu}M"
        elif self.mem_mb:
            found["mem"] = f"{self.mem_mb}M"
        if self.extra:
            found["additional_parameters"] = dict(self.extra)
        return found


def parse_flags(text: str) -> tuple[tuple[str, str | bool], ...]:
    """``--name=value`` and ``--name`` flags of ``sbatch`` as pairs, the last one of a name last.

    Raises:
        ValueError: A flag in another form.
    """
    pairs: dict[str, str | bool] = {}
    for word in shlex.split(text):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ValueError(f"sbatch flag {word!r} in {text!r}: write --name=value or --name")
        pairs[name] = value if equals else True
    return tuple(sorted(pairs.items()))


def read(resources: Mapping[str, Any], threads: int, requeues: int = 0, flags: str = "") -> Request:
    """The request of a job.

    Args:
        resources: The job's Snakemake resources.
        threads: The job's threads.
        requeues: Default of the resource of that name.
        flags: ``sbatch`` flags of every job, which the job's own ones override.

    Raises:
        ValueError: A resource that cannot be understood, in one line.
    """

    def text(name: str) -> str:
        values = (resources.get(alias) for alias in _ALIASES[name])
        return next((str(value) for value in values if value not in (None, "")), "")

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
        gpu_type, _, gpus = gpus.partition(":")
    return Request(
        cpus=max(1, threads, number("cpus_per_task")),
        gpus=number("gpus", value=gpus or 0),
        gpu_type=gpu_type,
        mem_mb=number("mem_mb"),
        mem_mb_per_cpu=number("mem_mb_per_cpu"),
        minutes=number("runtime"),
        partition=text("partition"),
        account=text("account"),
        qos=text("qos"),
        constraint=text("constraint"),
        requeues=number("requeues", requeues),
        extra=parse_flags(f"{flags} {text('extra')}"),
    )
