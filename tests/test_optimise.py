"""Optimisers, learning rates, clipping and frozen layers, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kt.errors import KtError
from kt.transfer.optimise import frozen, learning_rate, optimiser_of
from kt.transfer.training import Training


def training(**options: object) -> Training:
    return Training.model_validate({"epochs": 1, "lr": 0.2, **options})


def test_the_cosine_by_hand():
    found = [learning_rate(step, 4, training()) for step in range(5)]
    assert found == pytest.approx([0.2, 0.1 * (1 + 2**-0.5), 0.1, 0.1 * (1 - 2**-0.5), 0.0])
    assert learning_rate(0, 1, training()) == 0.2


def test_the_other_schedules_by_hand():
    assert [learning_rate(s, 4, training(schedule="constant")) for s in range(4)] == [0.2] * 4
    assert [learning_rate(s, 4, training(schedule="linear")) for s in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_the_warm_up_rises_to_the_highest_rate_and_the_schedule_starts_there():
    found = [learning_rate(s, 8, training(warm_up=0.25, schedule="linear")) for s in range(8)]
    assert found == pytest.approx([0.2 / 3, 0.4 / 3, *(0.2 * (1 - k / 6) for k in range(6))])


@given(st.integers(1, 60), st.floats(0, 0.99), st.sampled_from(["cosine", "linear", "constant"]))
def test_rates_are_positive_never_above_the_highest_and_reach_it_once_at_least(steps, warm_up, schedule):
    plan = training(warm_up=warm_up, schedule=schedule)
    rates = [learning_rate(step, steps, plan) for step in range(steps)]
    assert all(0 < rate <= 0.2 + 1e-12 for rate in rates)
    warm = round(warm_up * steps)
    if warm < steps:
        assert rates[warm] == 0.2


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, lambda p: torch.optim.AdamW(p, 0.2, weight_decay=0.1)),
        ({"optimiser": "adam"}, lambda p: torch.optim.Adam(p, 0.2, weight_decay=0.1)),
        ({"optimiser": "sgd"}, lambda p: torch.optim.SGD(p, 0.2, momentum=0.9, weight_decay=0.1)),
        ({"optimiser": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.2, weight_decay=0.1)),
    ],
)
def test_optimisers_are_torchs(options, reference):
    ours, theirs = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    steps = optimiser_of([ours], training(weight_decay=0.1, **options)), reference([theirs])
    for _ in range(3):
        for parameter, optimiser in zip((ours, theirs), steps, strict=True):
            optimiser.zero_grad()
            (parameter**2).sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[2].bias.requires_grad_(False)  # as it came
    return model


def test_frozen_parameters_stay_and_so_do_the_statistics_of_their_layers():
    model = net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with frozen(model, ["0.*", "1.*"]):
        assert [model[i].training for i in range(3)] == [False, False, True]
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.randn(4, 2)).sum().backward()
        optimiser.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"2.weight"}
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]


def test_without_patterns_everything_trains_as_it_came():
    model = net().eval()
    with frozen(model, []):
        assert all(module.training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]


def test_a_pattern_finds_the_student_inside_a_learner():
    learner = nn.ModuleDict({"model": net(), "heads": nn.Linear(1, 1)})
    with frozen(learner, ["0.weight"]):
        still = [name for name, p in learner.named_parameters() if not p.requires_grad]
    assert still == ["model.0.weight", "model.2.bias"]


def test_a_pattern_that_matches_nothing_is_named_and_nothing_stays_frozen():
    model = net()
    message = r"freeze: '0.wieght' matches no parameter; did you mean '0.weight'"
    with pytest.raises(KtError, match=message), frozen(model, ["1.*", "0.wieght"]):
        pass
    assert model[1].weight.requires_grad
