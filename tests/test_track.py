"""``kt track``: a finished training is one run of a tracker, with its settings and numbers, however often it runs."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tables
import yaml
from test_pipeline import STUDY

from kt.cli import main
from kt.stages import trackers
from kt.transfer import ledger
from kt.transfer.ledger import Ledger

ENDED = 1_700_000_000.0
STRANGE = "A tiny/strange: study?"


def make(folder: Path, seeds: int = 1) -> pd.DataFrame:
    """A study of two models with tables and a ledger, as if it had run; one training failed."""
    study = copy.deepcopy(STUDY) | {"title": STRANGE}
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    made = tables.study(models=2, seeds=seeds, effects={"kl": tables.EFFECTS["kl"], "self": tables.EFFECTS["self"]})
    tables.fail(made, (made["transfers"]["method"] == "kl") & (made["transfers"]["teacher"] == "model_0"))
    transfers = made["transfers"]
    # models that train together share a record
    both = transfers[transfers["method"] == "self"].assign(method="bikd", control=False)
    both["key"] = "bikd-" + both["seed"].astype(str)
    transfers = made["transfers"] = pd.concat([transfers, both], ignore_index=True)
    book = Ledger(folder / "results/ledger")
    for name, rows in transfers.groupby("key"):
        row = rows.iloc[0]
        method = {"name": row["method"], "version": 1, "temperature": 2.0}
        unit = {"method": method, "training": {"epochs": 2, "betas": [0.9, 0.99], "clip": None}, "mark": name}
        outcome = {"status": row["status"], "loss": [2.0, 1.0], "validation": [80.0, 90.0]}
        book.add(unit, outcome)
        os.utime(book.path(ledger.key(unit)), (ENDED, ENDED))
        transfers.loc[rows.index, "key"] = ledger.key(unit)
    tables.write(folder / "results/tables", made)
    return transfers


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], to: str) -> str:
    capsys.readouterr()
    assert main(["track", "--to", to]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], to: str) -> str:
    capsys.readouterr()
    assert main(["track", "--to", to]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


class Store:
    """Stand-ins for the trackers' packages, which keep what they are given."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.fails = False

    def begin(self, name: str, **facts: Any) -> dict[str, Any]:
        self.runs[name] = {"config": {}, "metrics": {}, "steps": [], "tags": {}, "ended": None, **facts}
        return self.runs[name]

    def end(self) -> None:
        if self.fails:
            raise KeyboardInterrupt

    def mlflow(self) -> dict[str, Any]:
        store, made = self, {}

        class Client:
            def __init__(self, tracking_uri: str) -> None:
                assert tracking_uri.startswith("sqlite:////")

            def get_experiment_by_name(self, name: str) -> Any:
                return None

            def create_experiment(self, name: str) -> str:
                return name

            def search_runs(self, experiments: list[str], max_results: int, page_token: str | None) -> Any:
                """Two runs per page."""
                begin, runs = int(page_token or 0), list(store.runs.items())

                class Page(list[Any]):
                    token = str(begin + 2) if begin + 2 < len(runs) else ""

                return Page(
                    SimpleNamespace(
                        info=SimpleNamespace(
                            run_name=name, run_id=name, status="FINISHED" if run["ended"] else "RUNNING"
                        ),
                        data=SimpleNamespace(tags=run["tags"]),
                    )
                    for name, run in runs[begin : begin + 2]
                )

            def delete_run(self, name: str) -> None:
                del store.runs[name]

            def create_run(self, experiment: str, start_time: int, tags: dict[str, str], run_name: str) -> Any:
                assert run_name not in store.runs
                store.begin(run_name, tags=tags)
                return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

            def log_batch(self, name: str, metrics: list[Any], params: list[Any]) -> None:
                for key, value, _, step in metrics:
                    if step:
                        store.runs[name]["steps"].append((step, key, value))
                    else:
                        store.runs[name]["metrics"][key] = value
                store.runs[name]["config"] |= dict(params)

            def set_terminated(self, name: str, end_time: int) -> None:
                store.end()
                store.runs[name]["ended"] = end_time

        made["mlflow"] = SimpleNamespace(MlflowClient=Client)
        made["mlflow.entities"] = SimpleNamespace(Metric=lambda *of: of, Param=lambda *of: of)
        return made

    def wandb(self) -> dict[str, Any]:
        def init(mode: str, project: str, id: str, name: str, dir: str, config: dict[str, Any], settings: Any) -> Any:
            assert mode == "offline"
            assert not set(project) & set("/\\#?%:")
            run = self.begin(name, config=config, id=id)
            Path(dir, "wandb", f"offline-run-20260101_000000-{id}").mkdir(parents=True)
            return SimpleNamespace(
                log=lambda values, step: run["steps"].extend((step, key, value) for key, value in values.items()),
                summary=SimpleNamespace(update=run["metrics"].update),
                finish=self.end,
            )

        return {"wandb": SimpleNamespace(init=init, Settings=SimpleNamespace)}

    def trackio(self) -> dict[str, Any]:
        store = self

        class Kept:
            def __init__(self, name: str) -> None:
                self.name = name

            def rename(self, name: str) -> None:
                store.runs[name] = store.runs.pop(self.name)

            def delete(self) -> None:
                del store.runs[self.name]

        class Api:
            def runs(self, project: str) -> list[Kept]:
                if not store.runs:
                    raise ValueError(f"Project '{project}' does not exist")
                return [Kept(name) for name in store.runs]

        def init(project: str, name: str, config: dict[str, Any], **_: Any) -> Any:
            assert name not in store.runs
            run = store.begin(name, config=config)

            def log(values: dict[str, float], step: int | None = None) -> None:
                if step is None:
                    run["metrics"].update(values)
                else:
                    run["steps"].extend((step, key, value) for key, value in values.items())

            return SimpleNamespace(log=log)

        return {"trackio": SimpleNamespace(Api=Api, init=init, finish=store.end)}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    def install(name: str) -> Store:
        store = Store()
        for module, value in getattr(store, name)().items():
            monkeypatch.setitem(sys.modules, module, value)
        return store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", "")  # set again by the command
    return install


RUNS = [
    "model_0.from-model_1.bikd", "model_0.from-model_1.kl", "model_0.self", "model_1.from-model_0.bikd", "model_1.self",
]  # fmt: skip
"""Of seed 0, without the end that is their key; that of kl to model_1 failed."""


def short(names: Any) -> list[str]:
    return sorted(name.rpartition(".seed")[0] for name in names)


@pytest.mark.parametrize("to", ["mlflow", "wandb", "trackio"])
def test_each_training_is_one_run_with_its_settings_and_numbers(study, installed, capsys, to):
    store, transfers = installed(to), pd.read_parquet(study / "results/tables/transfers.parquet")
    assert said(capsys, to).startswith(f"{to}: 5 trainings added, 0 there already; 1 failed, left out\n")
    assert short(store.runs) == RUNS
    name = next(name for name in store.runs if ".kl." in name)
    run, row = store.runs[name], transfers.query("method == 'kl' and status == 'ok'").iloc[0]
    assert name == f"model_0.from-model_1.kl.seed0.{row['key'][:8]}"
    settings = {"method.name": "kl", "method.temperature": 2.0, "training.epochs": 2, "training.betas": "[0.9, 0.99]"}
    settings |= {"student": "model_0", "teachers": "model_1", "seed": 0, "control": False, "uses_labels": False}
    about = {"study": STRANGE, "data": "digits", "task": "classification", "key": row["key"]}
    shown = run["config"] | run["tags"]
    assert {key: shown[key] for key in settings | about} == {
        key: str(value) if to == "mlflow" else value for key, value in (settings | about).items()
    }
    assert "training.clip" not in shown
    measured = ["acc_before", "acc_after", "delta", "delta_se", "transfer_rate", "n", "seconds"]
    assert {key: run["metrics"][key] for key in measured} == row[measured].to_dict()
    epochs = {"loss": (2.0, 1.0), "validation": (80.0, 90.0)}
    assert sorted(run["steps"]) == [(i + 1, f"epochs/{of}", epochs[of][i]) for i in (0, 1) for of in epochs]
    assert run["ended"] in (None, 1000 * ENDED)


@pytest.mark.parametrize("to", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_run_again_it_adds_only_what_is_new(study, installed, capsys, to):
    store = installed(to) if to != "tensorboard" else None
    said(capsys, to)
    before = store and {name: id(run) for name, run in store.runs.items()}
    assert said(capsys, to).startswith(f"{to}: 0 trainings added, 5 there already")
    assert before == (store and {name: id(run) for name, run in store.runs.items()})
    make(study, seeds=2)
    assert said(capsys, to).startswith(f"{to}: 5 trainings added, 5 there already; 2 failed")


@pytest.mark.parametrize("to", ["mlflow", "wandb", "trackio"])
def test_an_interrupted_command_leaves_no_half_run(study, installed, capsys, to):
    store = installed(to)
    store.fails = True
    assert main(["track", "--to", to]) == 130
    store.fails = False
    if to == "wandb":
        store.runs.clear()  # they are folders, of which the next command sees none
    assert said(capsys, to).startswith(f"{to}: 5 trainings added, 0 there already")
    assert short(store.runs) == RUNS


def test_a_control_has_only_the_numbers_that_hold_for_all_its_teachers(tmp_path, monkeypatch, installed, capsys):
    monkeypatch.chdir(tmp_path)
    transfers, store = make(tmp_path), installed("trackio")
    path = tmp_path / "results/tables"
    control = transfers["method"].eq("self") & transfers["student"].eq("model_0")
    third = transfers[control].assign(teacher="model_2", teachers=[["model_2"]], taught_errors=99.0)
    tables.write(path, {"transfers": pd.concat([transfers, third], ignore_index=True)})
    said(capsys, "trackio")
    (run,) = (run for name, run in store.runs.items() if name.startswith("model_0.self"))
    assert "taught_errors" not in run["metrics"]
    assert {"delta", "transfer_rate"} <= set(run["metrics"])


def test_tensorboard_reads_the_event_files_back(study, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    text = said(capsys, "tensorboard")
    (folder,) = (study / "results/tracking/tensorboard").glob("[!.]*")
    assert f"tensorboard --logdir {folder}" in text
    assert short(path.name for path in folder.iterdir()) == RUNS
    (kl,) = folder.glob("*.kl.*")
    events = EventAccumulator(str(kl)).Reload()
    row = pd.read_parquet(study / "results/tables/transfers.parquet").query("method == 'kl' and status == 'ok'").iloc[0]
    (delta,) = events.Scalars("delta")
    assert (delta.wall_time, delta.value) == (ENDED, pytest.approx(row["delta"]))
    assert [(at.step, at.value) for at in events.Scalars("epochs/validation")] == [(1, 80.0), (2, 90.0)]
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    settings = parse_session_start_info_plugin_data(content).hparams
    assert settings["training.epochs"].number_value == 2
    assert settings["teachers"].string_value == "model_1"


@pytest.mark.parametrize("to", trackers.TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_line_with_the_command(study, monkeypatch, capsys, to):
    for module in [to, *(name for name in sys.modules if name.startswith(f"{to}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    assert f"`pip install {to}`" in failed(capsys, to)


def test_a_tracker_unknown_or_a_study_without_tables_is_one_line(study, capsys):
    assert "did you mean 'tensorboard'" in failed(capsys, "tensorbord")
    (study / "results/tables/transfers.parquet").unlink()
    assert "transfers.parquet: no such file" in failed(capsys, "tensorboard")


def test_a_training_that_the_ledger_lost_is_named(study, capsys):
    for path in (study / "results/ledger").glob("??/*.json"):
        path.unlink()
    assert "missing or damaged" in failed(capsys, "tensorboard")
