"""Snakemake executor plugin that runs jobs on SLURM (or on this machine) through submitit.

Snakemake imports this package to find ``Executor``, ``ExecutorSettings`` and ``common_settings``. Compute nodes import
only :mod:`~snakemake_executor_plugin_submitit.task`, so the rest is imported lazily.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Executor, common_settings
    from .settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    """Import the names that Snakemake needs on first access."""
    if name in ("Executor", "common_settings"):
        from . import executor

        return getattr(executor, name)
    if name == "ExecutorSettings":
        from .settings import ExecutorSettings

        return ExecutorSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
