"""Checks before submission: requests that SLURM would never run."""

from __future__ import annotations

import datetime
import difflib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field

from .commands import message, run
from .request import Request

# permanent refusals; all others may pass
_WRONG = re.compile(r"invalid|unrecognized|ambiguous|requires an argument", re.IGNORECASE)


@dataclass
class Partition:
    """Limits of a partition.

    Attributes:
        gpus: GPU types; the empty name stands for GPUs without a type.
        minutes: Longest time limit.
        features: Features of its nodes, one set for each kind of node.
    """

    gpus: set[str] = field(default_factory=set)
    features: set[frozenset[str]] = field(default_factory=set)
    minutes: float = 0.0


def partitions() -> dict[str, Partition]:
    """Query the site's partitions, by name.

    Raises:
        ValueError: ``sinfo`` fails.
    """
    shown = run("sinfo", "--noheader", "--all", "--format=%R|%G|%l|%f")
    if shown.returncode:
        raise ValueError(f"sinfo fails: {message(shown.stderr)}")
    found: dict[str, Partition] = {}
    for line in shown.stdout.splitlines():
        name, *rest = line.split("|")
        if len(rest) != 3 or " " in name:
            continue  # a banner
        partition = found.setdefault(name, Partition())
        partition.gpus.update(gpu_types(rest[0]))
        partition.minutes = max(partition.minutes, minutes(rest[1]))
        partition.features.add(frozenset(rest[2].split(",")))
    return found


def gpu_types(gres: str) -> list[str]:
    """GPU types in a list such as ``gpu:a100:4(S:0-1),gpu:2080ti:8,shard:2``; empty for GPUs without a type."""
    kinds = []
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, _, rest = entry.partition(":")
        kind, _, count = rest.rpartition(":")
        if name == "gpu":  # sites have `gpu`, `gpu:4`, `gpu:a100` and `gpu:a100:4`
            kinds.append(kind if count.isdigit() else rest)
    return kinds


def compare(rule: str, request: Request, site: dict[str, Partition]) -> None:
    """Compare partition, time limit, GPU type and features with those of the site.

    Raises:
        ValueError: The error and the site's valid values, in one line.
    """
    named = request.partition.split(",") if request.partition else list(site)
    for name in named:
        if name not in site:
            raise ValueError(
                f"rule {rule}: this cluster has no partition {name!r}{_near(name, site)}; "
                f"it has {', '.join(sorted(site))}"
            )
    kinds = set().union(*(site[name].gpus for name in named))
    if request.gpu_type and request.gpu_type not in kinds:
        known = ", ".join(sorted(kinds - {""})) or "none with a type"
        raise ValueError(
            f"rule {rule}: no GPU of type {request.gpu_type!r}{_near(request.gpu_type, kinds)} "
            f"in partition {' or '.join(named)}; known: {known}"
        )
    kinds_of_nodes = set().union(*(site[name].features for name in named))
    together = set(request.constraint.split("&"))
    # any other form is left to SLURM, and so are unknown features; it knows features of nodes that are down, too
    plain = together <= set().union(*kinds_of_nodes)
    if plain and not any(together <= features for features in kinds_of_nodes):
        raise ValueError(
            f"rule {rule}: no node in partition {' or '.join(named)} has all features of {request.constraint!r}; "
            f"nodes have {', '.join(sorted('&'.join(sorted(each)) for each in kinds_of_nodes if each & together))}"
        )
    longest = max(site[name].minutes for name in named)
    if request.minutes > longest:
        raise ValueError(
            f"rule {rule}: runtime={request.minutes} min is above the limit of {longest:.0f} min "
            f"of partition {' or '.join(named)}"
        )


def ask(rule: str, flags: tuple[str, ...], user: str, *, accounting: bool) -> None:
    """Ask SLURM whether an account, a quality of service, a constraint and further flags are allowed.

    Raises:
        ValueError: SLURM's own message and, if the site keeps accounts, the user's valid values, in one line.
    """
    tried = run("sbatch", "--test-only", *flags, "--wrap=true")
    if tried.returncode and _WRONG.search(tried.stderr):
        text = message(tried.stderr).removeprefix("allocation failure: ")
        known = _associations(user) if accounting and shutil.which("sacctmgr") else ""
        raise ValueError(f"rule {rule}: SLURM refuses {' '.join(flags)}: {text}{known}")


def failed(node: str, since: float) -> bool:
    """Ask whether a node is down, or has booted since a time (Unix seconds); SLURM tells whole seconds."""
    shown = run("scontrol", "show", "node", node).stdout
    state, boot = (re.search(rf"\b{name}=(\S+)", shown) for name in ("State", "BootTime"))
    if state and re.search(r"DOWN|FAIL|NOT_RESPONDING|\*", state[1]):
        return True
    try:
        return boot is not None and datetime.datetime.fromisoformat(boot[1]).timestamp() >= int(since)
    except ValueError:  # None, Unknown
        return False


def flags(request: Request) -> tuple[str, ...]:
    """``sbatch`` flags of a request for :func:`ask` to check; empty if there are none."""
    values = {name: getattr(request, name) for name in ("account", "qos", "constraint")}
    named = [f"--{name}={value}" for name, value in values.items() if value]
    named += [f"--{name}" if value is True else f"--{name}={value}" for name, value in request.extra]
    # an account may be allowed in some partitions only
    return (*([f"--partition={request.partition}"] if request.partition and named else []), *named)


def _associations(user: str) -> str:
    shown = run("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account,qos")
    rows = [line.split("|") for line in shown.stdout.splitlines() if line.count("|") == 1]
    accounts, qos = ({name for row in rows for name in row[column].split(",") if name} for column in (0, 1))
    return f"; {user} has account {_or(accounts)} and qos {_or(qos)}" if rows else ""


def minutes(text: str) -> float:
    """Convert SLURM's ``days-hours:minutes:seconds`` to minutes."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
    except ValueError:  # infinite, n/a
        return float("inf")
    hours, whole, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + whole + seconds / 60


def _or(names: Iterable[str]) -> str:
    return " or ".join(sorted(names)) or "none"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [entry for entry in known if entry], 1)
    return f" (did you mean {near[0]}?)" if near else ""
