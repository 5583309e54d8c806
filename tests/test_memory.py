"""The estimate of a training's memory, against numbers counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from kt.transfer.memory import activations, estimate
from kt.transfer.training import Training


def test_activations_of_a_small_network_by_hand():
    # saved for backward, an image: the input of each linear layer (16 and 8 floats) and the result of the ReLU,
    # which is the second layer's input and counts once
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert activations(model, torch.zeros(1, 1, 4, 4)) == 4 * (16 + 8)


def test_weights_count_with_gradient_copies_and_optimiser():
    model, image = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), torch.zeros(1, 1, 4, 4)
    weights, inputs = 4 * 48, 4 * 16 * 10
    for options, copies in (({}, 6), ({"optimiser": "sgd"}, 5), ({"optimiser": "sgd", "momentum": 0.0}, 4)):
        training = Training.model_validate({"epochs": 1, "batch_size": 10, "lr": 0.1, **options})
        assert estimate(model, image, training) == weights * copies + inputs


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    activations(model, torch.randn(1, 1, 4, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
