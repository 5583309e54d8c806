"""One job per member: weights are made once, whatever else changes or fails, and predictions are always theirs."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import small_zoo

from kt import predictions, progress, store
from kt.cli import main
from kt.layout import Layout
from kt.stages import adopt, members
from kt.study.load import load

STUDY: dict[str, Any] = {
    "device": "cpu",
    "data": {"source": "digits", "splits": {"zoo": 40, "transfer": 40, "validation": 20, "test": 30}},
    "zoo": small_zoo(
        mixer={"arch": "tiny_mixer", "train": {"epochs": 2}},
        other={"arch": "tiny_mixer", "train": {"epochs": 1}},
    ),
    "pairs": {"select": "all"},
    "transfer": {"methods": {"kl": {}}, "seeds": [0], "training": {"epochs": 1, "batch_size": 10, "lr": 1e-3}},
}
MADE = Layout(Path("results"))
WEIGHTS, FACTS, PREDICTIONS = MADE.weights("mixer"), MADE.member("mixer"), MADE.predictions("mixer")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Make the member `mixer` of the study, after a change of it; returns the command's exit status."""
    monkeypatch.chdir(tmp_path)

    def run(change: Callable[[dict[str, Any]], object] = lambda study: None) -> int:
        study = copy.deepcopy(STUDY)
        change(study)
        Path("config.yaml").write_text(yaml.safe_dump(study))
        assert MADE.data.exists() or main(["data"]) == 0
        return main(["member", "--model", "mixer"])

    return run


def fewer_logits(study: dict[str, Any]) -> None:
    study["transfer"]["top_k"] = 3


def trained() -> int:
    """When the training last ended: the note of the weights' content is new with every training."""
    return int(store.read_json(FACTS)["train_seconds"] * 1e9)


def test_a_change_of_the_predictions_trains_nothing(make: Callable[..., int]) -> None:
    assert make() == 0
    before, first = trained(), PREDICTIONS.read_bytes()
    assert not list(MADE.checkpoints.glob("*"))
    os.utime(WEIGHTS, (1, 1))
    assert make(fewer_logits) == 0
    assert trained() == before
    assert PREDICTIONS.read_bytes() != first
    assert WEIGHTS.stat().st_mtime > 1  # as new as what it was compared with
    assert make() == 0
    assert PREDICTIONS.read_bytes() == first


def test_another_recipe_or_other_weights_on_disk_are_made_again(make: Callable[..., int]) -> None:
    assert make() == 0
    content, before = WEIGHTS.read_bytes(), trained()
    assert make(lambda study: study["zoo"]["models"]["mixer"]["train"].update(epochs=3)) == 0
    assert WEIGHTS.read_bytes() != content
    assert predictions.read(PREDICTIONS, "test").fingerprint == store.read_json(FACTS)["fingerprint"]
    assert make() == 0
    assert WEIGHTS.read_bytes() == content
    WEIGHTS.write_bytes(content[:-4] + b"\0\0\0\0")
    assert make() == 0
    assert WEIGHTS.read_bytes() == content
    assert trained() != before


def test_trained_weights_outlive_a_failure_of_the_predictions(
    make: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(members, "predict", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            make()
    content, took = WEIGHTS.read_bytes(), trained()
    WEIGHTS.unlink()  # as Snakemake does with the output of a failed job
    FACTS.unlink()
    capfd.readouterr()
    assert make() == 0
    assert "goes on from its checkpoint after step" in (told := capfd.readouterr().err)
    assert "0 steps are done twice" in told
    assert "train mixer" not in told
    assert WEIGHTS.read_bytes() == content
    assert trained() > took  # the time of both processes
    assert not list(MADE.checkpoints.glob("*"))


def test_weights_of_an_older_version_are_taken_unless_what_they_were_made_from_is_newer(
    make: Callable[..., int],
) -> None:
    assert make() == 0
    facts, before = store.read_json(FACTS), trained()
    older = {name: value for name, value in facts.items() if name != "made_from"}
    for seconds, taken in ((-10, False), (10, True)):
        store.write_json(FACTS, older)
        made = (MADE.data / "meta.json").stat().st_mtime
        os.utime(WEIGHTS, (made + seconds, made + seconds))
        adopt(load(Path("config.yaml")), MADE, "mixer")
        assert store.read_json(FACTS) == (facts if taken else older)
    assert make() == 0
    assert trained() == before
    store.write_json(FACTS, older)
    assert make() == 0
    assert trained() != before


def test_weights_made_by_hand_take_predictions_of_other_weights_along(make: Callable[..., int]) -> None:
    assert make() == 0
    assert main(["weights", "--model", "mixer"]) == 0
    assert PREDICTIONS.exists()  # the same weights again
    config = Path("config.yaml")
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert main(["weights", "--model", "mixer"]) == 0
    assert not PREDICTIONS.exists()


def test_signals_do_after_a_training_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with progress.stopping() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == before
