"""Tasks: what models learn, and the only place that knows it.

The project's own tasks are imported here; a module named in ``zoo.modules`` registers others by defining a sub-class of
``Task``.
"""

from __future__ import annotations

from kt.errors import KtError, unknown
from kt.tasks.classification import Classification
from kt.tasks.task import Task

__all__ = ["Classification", "Task", "named", "registry"]


def registry() -> dict[str, type[Task]]:
    """All tasks that are defined, by name."""
    found: dict[str, type[Task]] = {}
    pending = list(Task.__subclasses__())
    while pending:
        task = pending.pop()
        pending += task.__subclasses__()
        if "name" in task.__dict__:
            found[task.name] = task
    return dict(sorted(found.items()))


def named(name: str, at: str = "data.task") -> Task:
    """A task by its name.

    Raises:
        KtError: there is none; ``at`` is the key that names it.
    """
    known = registry()
    if name not in known:
        raise KtError(f"{at}: {unknown('task', name, known)}")
    return known[name]()
