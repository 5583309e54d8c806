"""Batches: what is read of them and when; and parts of a batch whose images are compared."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kt.compression import largest
from kt.tasks.classification import Classification
from kt.transfer import batch as batches
from kt.transfer.batch import Chosen, Examples, forward, join, mapped
from kt.transfer.failures import most_pieces
from kt.transfer.method import Method, registry

CPU, TASK = torch.device("cpu"), Classification()
SEEDS = st.integers(0, 2**32)
METHODS = [
    pytest.param(method(), id=name)
    for name, method in registry().items()
    if method.trains and method.takes != "experiment" and name not in ("sequential", "soup")
]


class Unread:
    """Answers that nobody may look at."""

    shape = (12, 5)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        pytest.fail("answers are read that the loss does not need")


def draw(seed: int, n: int = 12, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float16 answers of two teachers and of the frozen student, with many ties, and labels."""
    rng = np.random.default_rng(seed)
    teachers, frozen = rng.integers(-2, 3, (2, n, classes)), rng.integers(-2, 3, (n, classes))
    return (teachers / 2).astype(np.float16), (frozen / 2).astype(np.float16), rng.integers(0, classes, n)


def examples(method: Method, teachers: np.ndarray, frozen: np.ndarray, labels: np.ndarray) -> Examples:
    rows = [] if method.control else list(teachers if method.takes != "pair" else teachers[:1])
    return Examples(CPU, labels, rows, frozen, merge=partial(method.merge, TASK))


# what is known of a batch


@pytest.mark.parametrize("method", METHODS)
def test_targets_merged_batch_by_batch_are_those_of_all_images_at_once_to_the_bit(method):
    @given(SEEDS)
    def check(seed):
        teachers, frozen, labels = draw(seed)
        known = examples(method, teachers, frozen, labels)
        source = torch.from_numpy(teachers).float()
        source = torch.from_numpy(frozen).float() if method.control else source if method.takes != "pair" else source[0]
        expected = method.targets(TASK, source, torch.from_numpy(frozen).float(), torch.from_numpy(labels))
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
        for positions in (*order.split(5), order):
            batch = known.at(positions)
            assert torch.equal(batch.targets, expected[0][positions])
            assert torch.equal(batch.taught, expected[1][positions])
            assert torch.equal(batch.positions, positions)
            assert torch.equal(batch.truth, torch.from_numpy(labels)[positions])
            assert batch.targets.dtype == torch.float32
        share = 100 * float(expected[1].double().mean())
        assert known.share() == share
        monkey.setattr(batches, "BLOCK", 5 * 4)  # four images at once
        assert [len(batch) for batch in known.blocks()] == [4, 4, 4]
        assert known.share() == share
        monkey.undo()

    monkey = pytest.MonkeyPatch()
    check()


@pytest.mark.parametrize("method", [m for m in METHODS if m.values[0].name in ("finetune", "bikd")])
def test_a_loss_without_targets_reads_no_answers(method):
    labels = np.zeros(12, np.int64)
    known = Examples(CPU, labels, [Unread(), Unread()], Unread(), merge=partial(method.merge, TASK))
    output = torch.zeros(2, 3, 5) if method.joint else torch.zeros(3, 5)
    assert len(method.loss(TASK, output, known.at(torch.tensor([1, 5, 2])))) == 3


def test_rows_are_read_once_in_a_batch():
    class Counted:
        shape = (4, 2)
        read: ClassVar[list[list[int]]] = []

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            self.read.append(rows.tolist())
            return np.zeros((len(rows), 2), np.float16)

    batch = Examples(CPU, np.zeros(4, np.int64), [Counted()]).at(torch.tensor([3, 1]))
    assert batch.teachers[0].shape == batch.teachers[0].shape == (2, 2)
    assert Counted.read == [[3, 1]]


def test_answers_of_compressed_predictions_are_expanded_a_batch_at_a_time():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 20)).astype(np.float16)
    kept = largest(logits, 3)
    at_once = torch.from_numpy(np.asarray(kept)).float()
    positions = torch.tensor([7, 0, 49])
    batch = Examples(CPU, np.zeros(50, np.int64), [kept]).at(positions)
    assert torch.equal(batch.teachers[0], at_once[positions])


def test_rows_of_chosen_images_by_hand():
    chosen = Chosen(np.arange(10, dtype=np.float16)[:, None], np.array([9, 2, 4]))
    assert chosen.shape == (3, 1)
    batch = Examples(CPU, np.zeros(2), [Chosen(chosen, np.array([2, 0]))]).at(torch.tensor([1, 0]))
    assert batch.teachers[0].tolist() == [[9], [4]]


def test_a_method_that_asks_for_what_is_not_there_says_so():
    batch = Examples(CPU, np.zeros(3)).at(torch.tensor([0]))
    for name in ("targets", "frozen", "features"):
        with pytest.raises(AssertionError, match="this training has no"):
            getattr(batch, name)


def test_mapped_rows_are_those_given_and_leave_no_file(tmp_path):
    parts = [np.arange(6, dtype=np.float16).reshape(2, 3), np.ones((1, 3), np.float16)]
    rows = mapped(iter(parts), tmp_path / "new")
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows, np.concatenate(parts))
    assert rows.dtype == np.float16
    assert not list((tmp_path / "new").iterdir())


# parts of a batch


class Two(NamedTuple):
    rows: Tensor
    number: Tensor


def test_outputs_are_joined_by_hand():
    one, other = (
        Two(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor(4.0)),
        Two(torch.tensor([[5.0]]), torch.tensor(8)),
    )
    layer = nn.Linear(1, 1)
    (rows, number), deep, same = join([(one, [one.rows], layer), (other, [other.rows], layer)], [3, 1])
    assert rows.tolist() == deep[0].tolist() == [[1], [2], [3], [5]]
    assert number.item() == 3 / 4 * 4 + 1 / 4 * 8
    assert same is layer


@given(st.integers(2, 10_000))
def test_a_batch_is_halved_as_long_as_all_pieces_have_two_images(batch):
    most = most_pieces(batch)
    assert batch // most >= 2 > batch // (2 * most)
    assert most & (most - 1) == 0


class Net(nn.Module):
    """Features of each image, and a number that is a mean over them; it counts how often it runs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.runs = nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 4)), 0

    def forward(self, x: tuple[Tensor, list[Tensor]]) -> Two:
        self.runs += 1
        found = self.layers(x[0]) + x[1][0]
        return Two(found, found.square().mean())


def images() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 6, generator=generator), [torch.randn(7, 1, generator=generator)]


def cut(pieces: int) -> list[tuple[Tensor, list[Tensor]]]:
    x, others = images()
    return list(zip(x.tensor_split(pieces), ([part] for part in others[0].tensor_split(pieces)), strict=True))


def gradients(net: Net, output: Two) -> dict[str, Tensor]:
    """Of a loss that compares every image with every other one."""
    own = F.normalize(output.rows)
    ((own @ own.T).exp().mean() + output.number).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def make(*layers: nn.Module) -> Net:
    torch.manual_seed(0)
    return Net(*layers).train()


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_gradients_are_those_of_the_whole_batch(pieces):
    whole, net = make(nn.Tanh()), make(nn.Tanh())
    expected = gradients(whole, forward(whole, cut(1)))
    found = gradients(net, forward(net, cut(pieces)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (whole.runs, net.runs) == (1, 2 * pieces)


def test_dropout_is_the_same_in_both_passes_of_a_piece():
    net, slow = make(nn.Dropout(0.5)), make(nn.Dropout(0.5))
    torch.manual_seed(1)
    found = gradients(net, forward(net, cut(2)))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    outputs = [slow(piece) for piece in cut(2)]
    expected = gradients(slow, join(outputs, [4, 3]))
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_follow_every_piece_once(momentum):
    net, slow = make(nn.BatchNorm1d(8, momentum=momentum)), make(nn.BatchNorm1d(8, momentum=momentum))
    for _ in range(2):  # without momentum the mean is over all pieces, so that their number counts
        gradients(net, forward(net, cut(2)))
        for piece in cut(2):
            slow(piece)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(net.layers[1], name), getattr(slow.layers[1], name))
    assert net.layers[1].momentum == slow.layers[1].momentum


def test_layers_without_statistics_are_left_alone():
    net = make(nn.BatchNorm1d(8, track_running_stats=False))
    assert gradients(net, forward(net, cut(2)))
    assert net.layers[1].num_batches_tracked is None
