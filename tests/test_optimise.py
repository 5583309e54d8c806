"""Optimisers, learning rates, clipping and frozen layers, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kt.errors import KtError
from kt.transfer.engine import by_rate, frozen, learning_rate, matching, optimiser_of
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


@pytest.mark.parametrize(("every", "factor"), [(1, 0.5), (2, 0.1), (9, 0.1)])
def test_steps_are_those_of_torch(every, factor):
    plan = training(epochs=6, schedule="step", step_epochs=every, step_factor=factor)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2)
    theirs = torch.optim.lr_scheduler.StepLR(optimiser, every, factor)
    expected = []
    for _ in range(6):
        expected += [optimiser.param_groups[0]["lr"]] * 3
        optimiser.step()
        theirs.step()
    assert [learning_rate(step, 18, plan) for step in range(18)] == pytest.approx(expected)


def test_poly_is_a_power_of_the_share_that_is_left():
    plan = training(schedule="poly", power=0.9)
    theirs = torch.optim.lr_scheduler.PolynomialLR(torch.optim.SGD([torch.zeros(1)], lr=0.2), 8, 0.9)
    for step in range(8):
        assert learning_rate(step, 8, plan) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        theirs.optimizer.step()
        theirs.step()
    assert "power" in plan.plain()
    assert "power" not in training().plain()


def test_rates_of_parameters_go_by_their_names():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    plan = Training.model_validate({"epochs": 1, "lr": 0.1, "rates": {"0.bias": 0.1, "0.*": 0.5}})
    assert plan.plain()["rates"] == [["0.bias", 0.1], ["0.*", 0.5]]
    assert "rates" not in training().plain(), "keys of trainings without rates stay"
    groups = by_rate(model, [(matching(model, pattern, "rates"), times) for pattern, times in plan.rates])
    assert [([p.shape for p in parameters], times) for parameters, times in groups] == [
        ([(3,)], 0.1),
        ([(3, 2)], 0.5),
        ([(1, 3), (1,)], 1.0),
    ]
    with pytest.raises(KtError, match=r"transfer.training.rates: 'encoder.\*' matches no parameter"):
        matching(model, "encoder.*", "rates")


def test_what_the_steps_are_is_no_part_of_another_schedule_so_that_keys_stay():
    assert {"step_epochs", "step_factor"} <= training(schedule="step").plain().keys()
    assert training(step_epochs=3).plain() == training().plain()
    assert not {"step_epochs", "step_factor"} & training().plain().keys()


@pytest.mark.parametrize("value", [0, 1.5])
def test_a_factor_only_makes_rates_smaller(value):
    with pytest.raises(ValueError, match="step_factor"):
        training(schedule="step", step_factor=value)


def test_parts_have_their_own_rates_and_the_rest_has_that_of_the_training():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    head, block = model[1][1], model[1]
    groups = by_rate(model, [(head, 10.0), (block, 5.0)])
    assert [times for _, times in groups] == [10.0, 5.0, 1.0]
    assert [[id(p) for p in own] for own, _ in groups] == [
        [id(p) for p in part.parameters()] for part in (head, model[1][0], model[0])
    ]
    ((every, times),) = by_rate(model, [])
    assert times == 1.0
    assert [id(p) for p in every] == [id(p) for p in model.parameters()]
    assert [times for _, times in by_rate(head, [(head, 10.0)])] == [10.0], "nothing is left for the rest"


def test_the_warm_up_rises_to_the_highest_rate_and_the_schedule_starts_there():
    found = [learning_rate(s, 8, training(warm_up=0.25, schedule="linear")) for s in range(8)]
    assert found == pytest.approx([0.2 / 3, 0.4 / 3, *(0.2 * (1 - k / 6) for k in range(6))])


@given(st.integers(1, 60), st.floats(0, 0.99), st.sampled_from(["cosine", "linear", "constant", "step"]))
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
