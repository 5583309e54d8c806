"""An experiment through the whole workflow: real processes, real files, a real kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from test_pipeline import Checkout, without_seconds

pytestmark = pytest.mark.slow

NET = {"arch": "resnet10t", "args": {"channels": [4, 8, 8, 8], "stem_width": 4}}
UNITS = 3 * 2 + 2 + 2
"""Three methods with two seeds, two teachers alone, two ensembles."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A tiny study with two specialists and their student after one run, and what the run printed."""
    checkout = Checkout(tmp_path_factory.mktemp("experiment"))
    study = checkout.study
    study["zoo"]["models"] |= {
        "low": {**NET, "classes": [0, 1, 2, 3, 4], "train": {"epochs": 4}},
        "high": {"arch": "tiny_mixer", "kind": "mlp", "classes": ["5", "6", "7", "8", 9], "train": {"epochs": 4}},
    }
    study["transfer"] |= {"methods": {"kl": {}}, "seeds": [0], "checkpoint_seconds": 0, "export": "all"}
    study["pairs"] = {"select": "explicit", "pairs": [{"teacher": "mixer", "student": "byob"}]}
    methods = ("cfl", "kd", "supervised", "teachers", "ensemble_logits", "ensemble_softmax")
    study["amalgamate"] = {
        "halves": {
            "teachers": ["low", "high"],
            "student": NET,
            "methods": {name: {"width": 8, "blocks": 1} if name == "cfl" else {} for name in methods},
            "seeds": [0, 1],
            "training": {"epochs": 2, "batch_size": 20},
        }
    }
    return checkout, checkout.succeed("--until", "tables")


def test_specialists_are_measured_on_their_classes_and_stay_out_of_pairs(finished: tuple[Checkout, str]) -> None:
    zoo = finished[0].table("zoo").set_index("name")
    assert list(zoo.index) == ["byob", "mixer", "low", "high"]
    assert zoo.loc["byob", "classes"] is None
    assert zoo.loc["high", "classes"].tolist() == [5, 6, 7, 8, 9]
    labels = pd.read_parquet(finished[0].folder / "results/data/splits.parquet").query("split == 'test'")["label"]
    n, share = int((labels < 5).sum()), zoo.loc["low", "acc"] / 100
    assert zoo.loc["low", "acc_se"] == pytest.approx(100 * (share * (1 - share) / n) ** 0.5)
    for table in ("complementarity", "pairs"):
        assert set(finished[0].table(table)[["teacher", "student"]].to_numpy().ravel()) == {"byob", "mixer"}
    csv = pd.read_csv(finished[0].folder / "results/tables/zoo.csv").set_index("name")
    assert csv.loc["low", "classes"] == "0 1 2 3 4"


def test_every_unit_is_a_row_of_transfers_and_of_its_detail_table(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    transfers, details = checkout.table("transfers"), checkout.table("amalgamation")
    rows = transfers[transfers["student"] == "halves"]
    assert len(rows) == UNITS
    assert rows["teacher"].isna().all()
    assert rows["delta"].isna().all()
    assert rows["acc_after"].notna().all()
    assert set(details["key"]) == set(rows["key"]) <= checkout.ledger()
    overall = details[details["part"] == "all"].set_index("key")["acc"]
    assert overall.to_dict() == pytest.approx(rows.set_index("key").loc[overall.index, "acc_after"].to_dict())
    assert len(details) == 3 * (UNITS - 2) + 2
    zoo = checkout.table("zoo").set_index("name")
    alone = details[details["method"] == "teachers"].set_index("part")["acc"]
    assert alone.to_dict() == pytest.approx(zoo.loc[["low", "high"], "acc"].to_dict())
    assert len(pd.read_csv(checkout.folder / "results/tables/amalgamation.csv")) == len(details)
    assert "amalgamate.halves: 10 of 10" in finished[1]


def test_a_second_run_does_nothing_and_says_that_all_is_done(finished: tuple[Checkout, str]) -> None:
    printed = finished[0].succeed("--until", "tables")
    assert f"{UNITS + 1} trainings: {UNITS + 1} done, 0 to do" in printed
    assert "amalgamation halves" not in printed


ASKS = """
import sys, snakemake.cli, snakemake.jobs
def show(job):
    asked = []
    for job.attempt in (1, 2):
        asked += [job.resources.mem_mb, job.resources.runtime]
    print("asks", job.rule.name, *asked)
snakemake.jobs.Job.log_info = show
try: snakemake.cli.main(sys.argv[1:])
finally: print("torch" in sys.modules)
"""


def asked(checkout: Checkout) -> list[str]:
    """Rule, memory and time of the first attempt, and those of the second, of the job of an experiment."""
    arguments = checkout.command("-n", "--forcerun", "amalgamate", "--until", "amalgamate")[3:]
    done = subprocess.run(
        [sys.executable, "-c", ASKS, *arguments], cwd=checkout.folder, text=True, capture_output=True, check=True
    )
    *lines, torch_was_imported = done.stdout.splitlines()
    assert torch_was_imported == "False"
    return next(line for line in lines if line.startswith("asks amalgamate ")).split()[1:]


def test_a_job_asks_for_what_its_trainings_take_and_for_more_on_another_attempt(
    finished: tuple[Checkout, str],
) -> None:
    checkout, path = finished[0], finished[0].folder / "results/experiments/amalgamate/halves/needs.json"
    kept = json.loads(path.read_text("utf-8"))
    assert set(kept["methods"]) == {"cfl", "kd", "supervised"}
    assert asked(checkout) == ["amalgamate", "1400", "5", "2800", "10"]  # a process and its small students; all done
    large = kept["methods"]["cfl"] | {"held": {"training": 2_000_000_000}, "image": 0}
    path.write_text(json.dumps(kept | {"methods": {**kept["methods"], "cfl": large}}), "utf-8")
    assert asked(checkout)[1:4:2] == ["3300", "6600"]
    path.write_text(json.dumps({**kept, "plan": "another"}), "utf-8")
    assert asked(checkout)[1:4:2] == ["2000", "4000"], "what nobody knows is what the profile says"
    path.write_text(json.dumps(kept), "utf-8")


def test_a_student_is_kept_as_a_plain_timm_model(finished: tuple[Checkout, str]) -> None:
    folder = finished[0].folder / "results/students"
    details = finished[0].table("amalgamation")
    kept = details[details["trains"] & (details["part"] == "all")].set_index("key")
    index = pd.read_csv(folder / "index.csv").set_index("key")
    assert set(kept.index) <= set(index.index)
    assert {path.parent.name for path in folder.glob("*/README.md")} == set(index["name"])
    key = kept.index[0]
    name = index.loc[key, "name"]
    assert name.startswith("amalgamate.halves.from-low+high.")
    card = (folder / name / "README.md").read_text("utf-8")
    assert "from low and high" in card
    assert f"| accuracy after | {kept.loc[key, 'acc']:.2f} % of 150 test images |" in card
    assert f"timm.create_model('local-dir:{name}', pretrained=True)" in card
    model = timm.create_model(f"local-dir:{folder / name}", pretrained=True)
    assert model.eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_a_killed_experiment_goes_on_and_ends_bit_identical(finished: tuple[Checkout, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0].folder, tmp_path / "killed")
    results = tmp_path / "killed/results"
    shutil.rmtree(results / "ledger")
    shutil.rmtree(results / "experiments")
    command = [sys.executable, "-m", "kt", "amalgamate", "--experiment", "halves"]
    for steps in (1, 3):
        run = subprocess.Popen(command, cwd=tmp_path / "killed", stderr=subprocess.DEVNULL, start_new_session=True)
        known = set((results / "checkpoints").glob("*.pt")) if (results / "checkpoints").exists() else set()
        seen = 0.0
        while seen < steps:
            assert run.poll() is None, "the run ended before it could be killed"
            seen += len(set((results / "checkpoints").glob("*.pt")) - known) > 0
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert not list((results / "experiments").glob("*/*/*.parquet"))
    subprocess.run(command, cwd=tmp_path / "killed", check=True, capture_output=True)
    for name in ("rows", "details"):
        again, before = (
            pd.read_parquet(folder / f"experiments/amalgamate/halves/{name}.parquet")
            for folder in (results, finished[0].folder / "results")
        )
        if name == "rows":
            again, before = without_seconds(again), without_seconds(before)
        pd.testing.assert_frame_equal(again, before, check_exact=True)


def test_a_stage_that_is_not_there_is_found_before_anything_is_trained(
    finished: tuple[Checkout, str], tmp_path: Path
) -> None:
    checkout = Checkout(tmp_path / "bad")
    checkout.study = {**finished[0].study}
    halves = {**checkout.study["amalgamate"]["halves"], "methods": {"cfl": {"stages": [9]}}}
    checkout.study["amalgamate"] = {"halves": halves}
    done = checkout.run()
    assert done.returncode != 0
    (line,) = {line for line in done.stderr.splitlines() if line.startswith("amalgamate.halves.methods.cfl.stages")}
    assert "ResNet has no feature stage 9; allowed: 0 to 4" in line
    assert not (checkout.folder / "results/zoo").exists()


def test_an_experiment_that_is_dropped_leaves_no_rows_and_comes_back_for_nothing(
    finished: tuple[Checkout, str],
) -> None:
    checkout, before = finished[0], finished[0].ledger()
    with_it, section = checkout.table("transfers"), checkout.study.pop("amalgamate")
    checkout.succeed("--until", "tables")
    assert set(checkout.table("transfers")["student"]) == {"byob"}
    assert not list((checkout.folder / "results/tables").glob("amalgamation.*"))
    checkout.study["amalgamate"] = section
    checkout.succeed("--until", "tables")
    pd.testing.assert_frame_equal(checkout.table("transfers"), with_it)
    assert checkout.ledger() == before
