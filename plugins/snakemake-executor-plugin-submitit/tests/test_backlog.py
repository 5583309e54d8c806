"""The backlog, with a simulated cluster and clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import backlog as module
from snakemake_executor_plugin_submitit.backlog import Backlog
from snakemake_executor_plugin_submitit.clusters import SubmissionError
from snakemake_executor_plugin_submitit.request import Request
from snakemake_executor_plugin_submitit.watch import Entry

SMALL, LARGE = Request(mem_mb=100), Request(mem_mb=900)


class Site:
    """Accepts arrays of at most ``limit`` jobs, room for ``room`` more; if ``strict``, refuses ``LARGE`` for good."""

    def __init__(self, *, limit: int, room: int, strict: bool = False) -> None:
        self.limit, self.space, self.strict = limit, room, strict
        self.tried: list[int] = []
        self.sent: list[Any] = []
        self.told: list[str] = []
        self.backlog = Backlog(self, send=self.send, tell=self.told.append)  # type: ignore[arg-type]

    def room(self, _: Request) -> int:
        return self.space

    def send(self, request: Request, batch: Sequence[Entry]) -> None:
        self.tried.append(len(batch))
        if self.strict and request == LARGE:
            raise SubmissionError("too large", temporary=False)
        if len(batch) > self.limit:
            raise SubmissionError("too many", temporary=True)
        self.sent += [entry.info for entry in batch]
        self.space -= len(batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances by some seconds."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def entries(request: Request, infos: Sequence[Any]) -> list[Entry]:
    return [Entry(info, request, SimpleNamespace()) for info in infos]  # type: ignore[arg-type]


def test_what_is_refused_for_now_is_tried_again_smaller_and_later(clock: Callable[[float], None]) -> None:
    site = Site(limit=3, room=100)
    site.backlog.add(entries(SMALL, range(10)))
    site.backlog.submit()
    clock(1.9)
    site.backlog.submit()
    assert site.tried == [10]
    clock(0.2)
    site.backlog.submit()
    assert site.tried == [10, 5]
    clock(3.9)  # it waits twice as long now
    site.backlog.submit()
    assert site.tried == [10, 5]
    site.backlog.hurry()  # unless another job has ended
    site.backlog.submit()
    assert site.tried == [10, 5, 2, 4]
    assert site.sent == [0, 1]
    assert set(site.told) == {"the cluster accepts no more jobs for now; the others wait: too many"}
    clock(2.1)  # after a success as at first
    site.backlog.submit()
    assert site.tried == [10, 5, 2, 4, 2, 4]
    assert site.sent == [0, 1, 2, 3]


def test_equal_requests_leave_together_as_far_as_there_is_room() -> None:
    site = Site(limit=99, room=4)
    site.backlog.add([*entries(SMALL, "ab"), *entries(LARGE, "xy"), *entries(SMALL, "c")])
    site.backlog.submit()
    assert (site.tried, site.sent) == ([3, 1], ["a", "b", "c", "x"])
    site.backlog.submit()
    assert site.tried == [3, 1]
    site.space = 1
    site.backlog.submit()
    assert site.sent == ["a", "b", "c", "x", "y"]


def test_what_is_refused_for_good_says_why_and_stops_no_other() -> None:
    site = Site(limit=99, room=9, strict=True)
    large = entries(LARGE, "xy")
    site.backlog.add([*large, *entries(SMALL, "a")])
    site.backlog.submit()
    assert [entry.refused for entry in large] == ["too large", "too large"]
    assert site.sent == ["a"]
    site.backlog.submit()
    assert site.tried == [2, 1]


def test_what_was_cleared_is_never_sent() -> None:
    site = Site(limit=99, room=9)
    site.backlog.add(entries(SMALL, "a"))
    site.backlog.clear()
    site.backlog.submit()
    assert site.tried == []


def test_after_an_interrupt_nothing_is_sent_any_more() -> None:
    site = Site(limit=99, room=9)

    def interrupted(request: Request, batch: Sequence[Entry]) -> None:
        del request, batch
        raise KeyboardInterrupt

    site.backlog._send = interrupted
    site.backlog.add(entries(SMALL, "ab"))
    with pytest.raises(KeyboardInterrupt):
        site.backlog.submit()
    site.backlog._send = site.send  # as the polling thread would
    site.backlog.submit()
    assert site.sent == []
