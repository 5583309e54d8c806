"""What stays different from the published code: each line of the list in ``docs/methods.md`` names its tests."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import logits
from published import SEED, TRAINING, Batch, Bench, difference, each
from studies import stored_digits

from kt.tasks import losses
from kt.tasks.classification import Classification
from kt.transfer.learners import MemoryBank
from kt.transfer.method import registry
from kt.transfer.methods.bikd import BiKD
from kt.transfer.methods.flip import ByFlips
from kt.transfer.methods.xekl import XEKLMCL
from kt.transfer.session import Session

TASK = Classification()
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("published")
    return Bench(stored_digits(folder, transfer=60), folder / "checkpoints")


def test_every_difference_names_tests_that_exist():
    text = (TESTS.parent / "docs/methods.md").read_text("utf-8")
    listed = text.split("## Differences from the published code\n")[1].split("\n## ")[0]
    lines = re.findall(r"^- .*?(?=^- |\Z)", listed, re.M | re.S)
    there = {
        name
        for path in TESTS.glob("test_published*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    assert len(lines) >= 9
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line)
        assert named, line
        assert set(named) <= there, line


def test_cross_entropy_takes_logits_where_the_published_one_gets_probabilities(bench):
    student = bench.double()

    def published(batch: Batch) -> torch.Tensor:
        own = student(batch.images)
        return 0.5 * each(batch.teachers[0], own) + 0.5 * F.cross_entropy(own.softmax(1), batch.labels)

    assert difference(bench.trained(registry()["xekl"]()).last, bench.plainly([student], published)[0]) > 1e-3
    # what is lost by that: a sure and right answer costs nothing as logits, but at least ln(e + 1) − 1 as probabilities
    sure, labels = torch.tensor([[50.0, 0.0]]), torch.tensor([0])
    assert losses.cross_entropy(sure, labels).item() < 1e-6
    assert losses.cross_entropy(sure.softmax(1), labels).item() == pytest.approx(0.3132617, abs=1e-6)


def test_label_smoothing_smooths_labels_where_the_published_one_smooths_predictions():
    logits, labels, share = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), 0.3
    p = logits.double().softmax(1)[0]
    of_labels = -(0.7 * p[0].log() + 0.3 * p.log().mean())
    of_predictions = -(0.7 * p[0] + 0.3 / 3).log()
    assert losses.cross_entropy(logits, labels, share).item() == pytest.approx(of_labels.item(), abs=1e-6)
    assert abs(of_labels - of_predictions) > 0.1


def test_xekl_mcl_has_no_published_habit_unless_asked():
    method = XEKLMCL()
    habits = ("flips", "mean", "top", "updates", "start", "evaluation")
    assert [getattr(method, name) for name in habits] == ["frozen", "batch", None, "through", "copied", "restores"]


def test_the_count_of_batches_is_copied_into_the_slow_weights_and_no_weight_depends_on_it(bench):
    last, count = bench.trained(XEKLMCL(tau=0.8)).last, "body.2.num_batches_tracked"
    steps = TRAINING.epochs * len(bench.labels) // TRAINING.batch_size
    assert last[count].dtype == torch.int64
    assert last[count] - bench.weights[count] == steps
    student = bench.zoo.load("s")
    student.load_state_dict(last)
    before = student.train()(bench.zoo.images("test"))
    student.load_state_dict({**last, count: torch.tensor(1)})
    assert torch.equal(student(bench.zoo.images("test")), before)


def test_flips_are_those_of_the_frozen_student_unless_asked():
    found = [method() for method in registry().values() if issubclass(method, ByFlips)]
    assert [(method.name, method.student) for method in found] == [
        (f"flip_{who}", "frozen") for who in ("mean", "student", "teacher")
    ]


def test_no_method_but_xekl_mcl_cuts_the_classes():
    assert [name for name, method in registry().items() if "top" in method.model_fields] == ["xekl_mcl"]


def test_negatives_of_crd_may_repeat():
    torch.manual_seed(0)
    bank = MemoryBank(2, 2, 2, 0.07, torch.tensor([0, 0, 1, 1, 1]), 2)
    repeats = [len(set(row.tolist())) < 2 for row in bank.draw(torch.tensor([1] * 50))]
    assert any(repeats)
    assert not all(repeats)


def test_a_later_frozen_student_is_rounded_as_cached_predictions_are(bench):
    folder = bench.bench.settings.checkpoints
    before = sorted(folder.glob("*"))
    now = bench.session(registry()["kl"]())._now(bench.weights)
    student, view = bench.bench.model("s", bench.weights), bench.bench.view("transfer")
    assert now.dtype == np.float16
    assert np.array_equal(now, logits(student, view))
    assert isinstance(now, np.memmap)  # it takes no memory,
    assert sorted(folder.glob("*")) == before  # and leaves no file


def test_of_two_equal_models_the_one_with_the_larger_fingerprint_teaches(bench):
    equal = torch.zeros(2, 4, 10)
    assert BiKD.masks(TASK, equal, torch.zeros(4, dtype=torch.int64)).tolist() == [[False] * 4, [True] * 4]
    session = bench.session(BiKD())
    session.train(BiKD(), ["t"], SEED)
    assert [name for name, _ in session._members] == ["s", "t"]  # by fingerprint: the student is the first here


def test_the_best_epoch_is_that_of_the_validation_images(bench, monkeypatch):
    accuracies = iter([30.0, 20.0])
    monkeypatch.setattr(Session, "_value", lambda self, learner: next(accuracies))
    trained = bench.trained(BiKD())
    assert (trained.best_epoch, trained.validation) == (1, [30.0, 20.0])
    assert difference(trained.best, trained.last) > 0
