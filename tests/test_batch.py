"""Batches in pieces whose samples are compared: the joined outputs and gradients are those of the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kt.transfer.batch import forward, join
from kt.transfer.failures import most_pieces


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
