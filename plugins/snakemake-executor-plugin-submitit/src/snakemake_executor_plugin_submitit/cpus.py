"""CPUs of this machine that the process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def usable_cpus() -> int:
    """Count the CPUs that this process may use: the minimum of its affinity and the quotas of its control groups."""
    return max(1, min([len(os.sched_getaffinity(0)), *(int(quota) for quota in quotas())]))


def quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """CPU quotas of this process's control groups (versions 1 and 2); a container sees only its root."""
    found = []
    with contextlib.suppress(OSError):
        for line in own.read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = root / controllers if controllers else root
            group = mount / path.lstrip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
                found += _quota(folder)
    return found


def _quota(folder: Path) -> list[float]:
    """Quota of one control group; empty without a limit."""
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        if (folder / "cpu.max").exists():
            quota, period = map(int, (folder / "cpu.max").read_text("utf-8").split())
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text("utf-8")) for name in ("quota", "period"))
        return [quota / period] if quota > 0 else []
    return []
