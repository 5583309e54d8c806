"""Models with tied weights, and models that give something else than logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny, equal, saved
from torch import nn

from kt.errors import KtError
from kt.zoo import models, weights


class Tied(nn.Module):
    """A module under two names, and a parameter shared by two layers."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.again = self.stem
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.head = nn.Linear(4, num_classes)
        self.register_buffer("part", torch.arange(6.0)[2:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one((self.stem(x) + self.again(x)).mean((2, 3)))) + self.part.sum())


def test_tied_weights_are_saved_loaded_and_stay_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    weights.save(model, tmp_path / "w.safetensors")
    for path in (str(tmp_path / "w.safetensors"), saved(model.state_dict(), tmp_path / "w.pth")):
        found = weights.load(Tied(), path)
        assert equal(found.state_dict(), model.state_dict())
        assert found.two.weight is found.one.weight
        assert found.again is found.stem


def test_a_file_may_have_tied_weights_under_one_of_their_names(tmp_path):
    model = Tied()
    once = {n: t for n, t in model.state_dict().items() if not n.startswith("again.") and n != "one.weight"}
    assert equal(weights.load(Tied(), saved(once, tmp_path / "w.pth")).state_dict(), model.state_dict())


def test_weights_that_only_the_model_ties_are_refused(tmp_path):
    content = {**Tied().state_dict(), "two.weight": torch.zeros(4, 4)}
    with pytest.raises(KtError, match=r"two.weight and one.weight are one tensor of the model, but differ in the file"):
        weights.load(Tied(), saved(content, tmp_path / "w.pth"))


# outputs


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (lambda x: (x, x), r"the model gives a tuple of 2; needed: one tensor of floating-point numbers, \[1, 3\]"),
        (lambda x: {"logits": x, "aux": x}, "the model gives a dict with logits, aux; needed"),
        (lambda x: [x], "the model gives a list of 1; needed"),
        (lambda x: None, "the model gives a NoneType; needed"),
        (lambda x: x[:, :2], r"the model gives \[1, 2\] of float32 for one image; needed: .* \[1, 3\]"),
        (lambda x: x[0], r"the model gives \[3\] of float32"),
        (lambda x: x[..., None, None], r"the model gives \[1, 3, 1, 1\] of float32"),
        (lambda x: x.argmax(1, keepdim=True).expand(1, 3), r"the model gives \[1, 3\] of int64"),
        (lambda x: x.to(torch.complex64), r"the model gives \[1, 3\] of complex64"),
        (lambda x: x / 0 * 0, "the model's answer to a plain image is not finite"),
    ],
)  # fmt: skip
def test_a_model_that_gives_no_logits_is_named(given, line):
    class Odd(Tiny):
        def forward(self, x: torch.Tensor) -> Any:
            return given(super().forward(x))

    _, found = models.run_once(Odd(), (1, 8, 8))
    with pytest.raises(KtError, match=line) as caught:
        models.check_outputs(found, (3,))
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_logits_is_taken():
    for model in (Tiny(), Tiny().to(torch.bfloat16)):
        image = (1, 8, 8)
        if next(model.parameters()).dtype == torch.float32:
            models.check_outputs(models.run_once(model, image)[1], (3,))
    models.check_outputs(torch.zeros(1, 3, dtype=torch.bfloat16), (3,))


class InTraining(Tiny):
    """Gives something else while it is trained, as torchvision's Inception does."""

    def __init__(self, given: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.before, self.given = nn.BatchNorm2d(1), given

    def forward(self, x: torch.Tensor) -> Any:
        found = super().forward(self.before(x))
        return self.given(found) if self.training else found


def test_what_a_model_gives_in_training_is_looked_at_and_the_model_is_left_as_it_was() -> None:
    model = InTraining(lambda x: x).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    models.check_training(model, (1, 8, 8), (3,))
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for given, line in (
        (
            lambda x: (x, x),
            r"in training the model gives a tuple for two images; needed: one tensor, \[2, 3\]",
        ),
        (lambda x: x[:1], r"in training the model gives \[1, 3\] for two images"),
        (lambda x: x @ x, "the model cannot be trained: RuntimeError: .*shapes cannot be multiplied"),
    ):
        with pytest.raises(KtError, match=line):
            models.check_training(InTraining(given), (1, 8, 8), (3,))
