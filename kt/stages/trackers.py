"""Experiment trackers, offline: each says which runs it has, and takes another. A run is there whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kt import store
from kt.errors import KtError

Plain = str | float | bool
"""A value that every tracker takes; whole numbers count as floats."""

UNFINISHED = "unfinished"
"""Name of a run, or of a folder, that is being written: what an interrupted command leaves."""


@dataclass(frozen=True)
class Run:
    """One training as trackers show it.

    Attributes:
        name: readable, and unique by the first digits of its key: ``vit.from-resnet.kl_dp.seed0.1f3a9c2e``.
        config: its method, teachers, student, seed and settings.
        metrics: its row of the table ``transfers``, in the units of docs/tables.md.
        epochs: loss and metric on validation after each epoch; none where nothing is trained.
        steps: the x axis of these: number of the epoch, or of a policy its actions so far.
        tags: of the study, and the key in the ledger.
        ended: when it ended, in seconds since 1970.
    """

    name: str
    config: Mapping[str, Plain]
    metrics: Mapping[str, float]
    epochs: Sequence[Mapping[str, float]]
    steps: Sequence[int]
    tags: Mapping[str, str]
    ended: float


class Tracker(Protocol):
    """A tracker; it is made with a folder of its own and the name of the project.

    Attributes:
        shown: how to look at it.
    """

    shown: str

    def __init__(self, folder: Path, project: str) -> None: ...

    def names(self) -> set[str]:
        """Names of the runs that it has."""

    def add(self, run: Run) -> None:
        """Add a run."""


def _imported(name: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        KtError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"{extra} is not installed here ({error}); `pip install {extra}` adds it"
        raise KtError(f"track: --to {extra}: {text}") from error


class TensorBoard:
    """A folder of event files per run: curves, numbers, and the settings for the tab HPARAMS."""

    def __init__(self, folder: Path, project: str) -> None:
        self._events = _imported("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summaries = _imported("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._writer = _imported("tensorboard.summary.writer.event_file_writer", "tensorboard").EventFileWriter
        self._settings = _imported("tensorboard.plugins.hparams.summary_v2", "tensorboard").hparams_pb
        self._runs, self._unfinished = folder / project, folder / f".{UNFINISHED}"
        self.shown = f"tensorboard --logdir {self._runs}"

    def names(self) -> set[str]:
        """Folders of the project."""
        return {path.name for path in self._runs.glob("*")}

    def add(self, run: Run) -> None:
        """Write its events, then move the folder to its place."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        writer = self._writer(str(self._unfinished))

        def write(summary: Any, step: int) -> None:
            writer.add_event(self._events.Event(wall_time=run.ended, step=step, summary=summary))

        def scalar(name: str, value: float) -> Any:
            return self._summaries.Summary(value=[self._summaries.Summary.Value(tag=name, simple_value=value)])

        write(self._settings({**run.config, **run.tags}, trial_id=run.name, start_time_secs=run.ended), 0)
        for step, values in zip(run.steps, run.epochs, strict=True):
            for name, value in values.items():
                write(scalar(name, value), step)
        for name, value in run.metrics.items():
            write(scalar(name, value), 0)
        writer.close()
        self._runs.mkdir(parents=True, exist_ok=True)
        self._unfinished.rename(self._runs / run.name)


class MLflow:
    """Runs of an experiment, in an SQLite file, or where ``MLFLOW_TRACKING_URI`` says."""

    def __init__(self, folder: Path, project: str) -> None:
        mlflow, self._entities = _imported("mlflow", "mlflow"), _imported("mlflow.entities", "mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)
        self.shown = f"mlflow ui --backend-store-uri {uri}"

    def names(self) -> set[str]:
        """Finished runs of the experiment; others of ours are deleted."""
        finished, token = set(), None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                if run.info.status == "FINISHED":
                    finished.add(run.info.run_name)
                elif run.data.tags.get("key"):  # of an interrupted command
                    self._client.delete_run(run.info.run_id)
            token = page.token
            if not token:
                return finished

    def add(self, run: Run) -> None:
        """Make a run, and finish it when it has everything."""
        ended, of = round(1000 * run.ended), self._entities
        made = self._client.create_run(self._experiment, start_time=ended, tags=dict(run.tags), run_name=run.name)
        metrics = [
            of.Metric(name, value, ended, step)
            for step, values in zip([0, *run.steps], [run.metrics, *run.epochs], strict=True)
            for name, value in values.items()
        ]
        params = [of.Param(name, str(value)) for name, value in run.config.items()]
        for start in range(0, max(len(metrics), len(params)), 100):  # no more are taken at once
            part = slice(start, start + 100)
            self._client.log_batch(made.info.run_id, metrics=metrics[part], params=params[part])
        self._client.set_terminated(made.info.run_id, end_time=ended)


class WandB:
    """A folder per run, written offline; ``wandb sync`` uploads each under its own id, so that none is there twice."""

    def __init__(self, folder: Path, project: str) -> None:
        self._wandb = _imported("wandb", "wandb")
        self._folder, self._project, self._unfinished = folder, project, folder / f".{UNFINISHED}"
        self.shown = f"wandb sync {folder / '*/offline-run-*'}"

    def names(self) -> set[str]:
        """Folders that are whole."""
        return {path.name for path in self._folder.glob("*")}

    def add(self, run: Run) -> None:
        """Write it elsewhere, then move its folder to its place."""
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        settings = self._wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        made = self._wandb.init(
            mode="offline",
            project=self._project,
            id=store.digest(run.name)[:32],
            name=run.name,
            dir=str(self._unfinished),
            config={**run.config, **run.tags},
            settings=settings,
        )
        for step, values in zip(run.steps, run.epochs, strict=True):
            made.log(dict(values), step=step)
        made.summary.update(dict(run.metrics))
        made.finish()
        (self._unfinished / "wandb").rename(self._folder / run.name)


class Trackio:
    """Runs of a project, in an SQLite file."""

    def __init__(self, folder: Path, project: str) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)  # read when the package is imported
        self._trackio, self._project = _imported("trackio", "trackio"), project
        self.shown = f"TRACKIO_DIR={folder} trackio show --project {project}"

    def names(self) -> set[str]:
        """Runs of the project; one that an interrupted command left is deleted."""
        with contextlib.suppress(ValueError):  # there is no such project yet
            runs = {run.name: run for run in self._trackio.Api().runs(self._project)}
            if left := runs.pop(UNFINISHED, None):
                left.delete()
            return set(runs)
        return set()

    def add(self, run: Run) -> None:
        """Write it under another name, then rename it."""
        with contextlib.redirect_stdout(None):
            made = self._trackio.init(
                self._project,
                UNFINISHED,
                config={**run.config, **run.tags},
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            for step, values in zip(run.steps, run.epochs, strict=True):
                made.log(dict(values), step=step)
            made.log(dict(run.metrics))
            self._trackio.finish()
        (written,) = (of for of in self._trackio.Api().runs(self._project) if of.name == UNFINISHED)
        written.rename(run.name)


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}
"""By the name in ``kt track --to``, which is that of the package too."""
