"""The command line: help, one-line errors, exit statuses, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from studies import small_zoo

import kt
from kt.cli import main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "data",
    "member",
    "weights",
    "predictions",
    "zoo",
    "complementarity",
    "pairs",
    "transfer",
    "tables",
    "analyse",
    "recommend",
    "next",
    "pair",
    "export",
    "publish",
    "figures",
    "report",
    "explore",
    "status",
    "retry",
    "config",
    "schema",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example: kt {command}" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"kt {kt.__version__}\n"


def test_check_accepts_the_default_study(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["config", "check"]) == 0
    assert "fine, 8 models" in capsys.readouterr().out


def test_an_error_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/none.yaml: cannot be read (No such file or directory)\n"


def test_unknown_names_offer_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["figures", "flips_heatmpa", "--tables", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "did you mean 'flips_heatmap'" in capsys.readouterr().err
    assert main(["complementarity", "--split", "tset"]) == 1
    assert "did you mean 'test'" in capsys.readouterr().err
    assert main(["weights", "--model", "resnt"]) == 1
    assert "did you mean 'resnet'" in capsys.readouterr().err


@pytest.mark.parametrize("pause", ["0", "-1", "nan", "soon"])
def test_a_pause_is_a_number_of_seconds(pause: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--watch", pause])
    assert f"{pause!r}: allowed is seconds from 0.1 to 86400" in capsys.readouterr().err


def test_messages_also_go_to_the_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs/here.log"
    assert main(["config", "check", "--config", str(tmp_path / "none.yaml"), "--log", str(log)]) == 1
    assert log.read_text() == capsys.readouterr().err


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{sys.executable} -m kt config schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


STUDY = {
    "results": "results",
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 100, "transfer": 64, "validation": 40, "test": 60}},
    "zoo": small_zoo(
        teacher={"arch": "tiny_mixer", "train": {"epochs": 2}},
        student={"arch": "tiny_mixer", "train": {"epochs": 1, "seed": 1}},
    ),
    "pairs": {"select": "top", "k": 1},
    "transfer": {
        "methods": {"kl": {}, "self": {}},
        "seeds": [0],
        "training": {"epochs": 3, "batch_size": 32, "lr": 1e-3},
        "checkpoint_seconds": 0,
    },
}


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study brought up to the transfers, stage by stage, in this process where coverage sees it."""
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "config.yaml").write_text(yaml.safe_dump(STUDY))
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["data"]) == 0
        for model in ("teacher", "student"):
            assert main(["weights", "--model", model]) == 0
            assert main(["predictions", "--model", model]) == 0
        assert main(["zoo"]) == 0
        assert main(["complementarity", "--split", "validation"]) == 0
        assert main(["complementarity"]) == 0
        assert main(["pairs", "--scores", "results/complementarity/validation.parquet"]) == 0
    finally:
        os.chdir(here)
    return folder


def test_every_stage_runs_by_hand(
    by_hand: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(by_hand)
    for model in ("teacher", "student"):
        assert main(["transfer", "--student", model, "--pairs", "results/tables/pairs.parquet"]) == 0
    for command in ("tables", "analyse", "figures", "report", "status", "retry"):
        assert main([command]) == 0
    printed = capsys.readouterr()
    assert "2 of 2 done\ntrainings  4 of 4 done, 0 to do" in printed.out
    assert "0 failed trainings will be tried again" in printed.out
    assert (by_hand / "results/report.html").stat().st_size > 10_000


def test_the_rule_top_needs_a_table_of_pairs(
    by_hand: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(by_hand)
    assert main(["transfer", "--student", "student"]) == 1
    assert "the rule 'top' needs the complementarity table" in capsys.readouterr().err


def test_damaged_predictions_never_reach_a_training(
    by_hand: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(by_hand)
    (by_hand / "other.yaml").write_text(yaml.safe_dump(STUDY).replace("0.001", "0.003"))
    path = Path("results/predictions/teacher.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        arguments = ["--pairs", "results/tables/pairs.parquet", "--out", "never.parquet"]
        assert main(["transfer", "--config", "other.yaml", "--student", "student", *arguments]) == 1
    finally:
        path.write_bytes(whole)
    assert "teacher.safetensors: its content is not what was written" in capsys.readouterr().err
    assert not Path("never.parquet").exists()


def test_failed_trainings_are_rows_with_a_reason_and_can_be_retried(
    by_hand: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    from kt.transfer.methods.kl import KL

    monkeypatch.chdir(by_hand)
    (by_hand / "failing.yaml").write_text(yaml.safe_dump({**STUDY, "results": "results"}).replace("0.001", "0.002"))

    def broken(*_: object) -> None:
        raise RuntimeError("the method is broken")

    with monkeypatch.context() as patch:
        patch.setattr(KL, "loss", broken)
        transfer = ["transfer", "--config", "failing.yaml", "--student", "student"]
        transfer += ["--pairs", "results/tables/pairs.parquet"]
        assert main(transfer) == 0
        assert "1 of 2 trainings failed" in capsys.readouterr().err
    table = pd.read_parquet("results/transfer/student/0.parquet")
    failed = table[table["status"] == "failed"]
    assert failed["method"].tolist() == ["kl"]
    assert failed["reason"].tolist() == ["error: RuntimeError: the method is broken"]
    assert failed["delta"].isna().all()
    assert main(["retry", "--config", "failing.yaml"]) == 0
    assert "1 failed training will be tried again by the next run (1 job)" in capsys.readouterr().out
    assert not (by_hand / "results/transfer/student/0.parquet").exists()
    assert main(transfer) == 0
    assert pd.read_parquet("results/transfer/student/0.parquet")["status"].eq("ok").all()


def test_a_signal_ends_a_transfer_with_a_checkpoint_and_the_rerun_goes_on(by_hand: Path) -> None:
    folder, checkpoints = by_hand, by_hand / "results/checkpoints"
    longer = json.loads(json.dumps(STUDY))
    longer["transfer"]["training"]["epochs"] = 60
    (folder / "longer.yaml").write_text(yaml.safe_dump(longer))
    command = [sys.executable, "-m", "kt", "transfer", "--config", "longer.yaml", "--student", "student"]
    command += ["--pairs", "results/tables/pairs.parquet", "--out", "longer.parquet"]
    run = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    while not list(checkpoints.glob("*.pt")):
        assert run.poll() is None, "ended before it could be stopped"
        time.sleep(0.01)
    run.send_signal(signal.SIGUSR2)
    _, message = run.communicate()
    assert run.returncode == 143, message
    assert "stopped by a signal" in message
    assert len(list(checkpoints.glob("*.pt"))) == 1
    assert not (folder / "longer.parquet").exists()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on from its checkpoint" in done.stderr
    assert not list(checkpoints.glob("*.pt"))
