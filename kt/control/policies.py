"""Networks of policies, registered with timm: hidden layers, then one linear head with logits and value.

A policy takes observations, float32 [B, C, H, W] in [0, 1] where they are bytes, and gives [B, A + 1]: a logit for each
of A actions, then the value of the state. ``feature_info`` lists its hidden layers, so that ``kt.zoo.stages`` finds
them. No layer behaves differently in training.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from kt.errors import KtError
from kt.zoo import models

if TYPE_CHECKING:
    from kt.control.games import GameFacts


class PolicyNet(nn.Module):
    """Hidden layers, one after another, and a head.

    Weights are orthogonal: those of the policy so small that all actions begin about equally likely.

    Args:
        hidden: the layers by name, each with its nonlinearity.
        widths: channels of each layer's output; the last layer gives vectors.
        num_classes: A + 1.
    """

    def __init__(self, hidden: Mapping[str, nn.Module], widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        for name, layer in hidden.items():
            self.hidden.add_module(name, layer)
        for layer in self.hidden.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _orthogonal(layer, math.sqrt(2))
        self.num_features = widths[-1]
        self.feature_info = [
            {"module": f"hidden.{name}", "num_chs": width} for name, width in zip(hidden, widths, strict=True)
        ]
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The layer that gives logits and value."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new head in the place of the old one, for ``num_classes`` − 1 actions."""
        self.head = nn.Linear(self.num_features, num_classes)
        _orthogonal(self.head, 1.0)
        with torch.no_grad():
            self.head.weight[:-1] *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        """Logits and value [B, A + 1] of observations [B, C, H, W]."""
        found: Tensor = self.head(self.hidden(x))
        return found


def _orthogonal(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _convolutions(
    sizes: Sequence[tuple[int, int, int, int]],
    num_classes: int,
    in_chans: int,
    img_size: int | Sequence[int],
    width: int,
) -> PolicyNet:
    """Convolutions of so many (filters, kernel, stride, padding), and a linear layer of ``width``, each with a ReLU."""
    sides = _sides(img_size)
    layers: dict[str, nn.Module] = {}
    for i, (filters, kernel, stride, padding) in enumerate(sizes, start=1):
        layers[f"conv{i}"] = nn.Sequential(nn.Conv2d(in_chans, filters, kernel, stride, padding), nn.ReLU())
        in_chans, sides = filters, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
    if min(sides) < 1:
        raise ValueError(f"observations of {' x '.join(map(str, _sides(img_size)))} are too small for its convolutions")
    layers["linear"] = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * math.prod(sides), width), nn.ReLU())
    return PolicyNet(layers, [*(filters for filters, *_ in sizes), width], num_classes)


def _sides(img_size: int | Sequence[int]) -> list[int]:
    return [img_size, img_size] if isinstance(img_size, int) else list(img_size)


def _plain(kwargs: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Arguments with their defaults, without those that ``timm.create_model`` adds for published weights."""
    return defaults | {key: value for key, value in kwargs.items() if not key.startswith(("pretrained_", "cache_dir"))}


@register_model
def policy_a3c(pretrained: bool = False, img_size: int | Sequence[int] = 84, **kwargs: Any) -> PolicyNet:
    """Convolutions of 16 filters 8 × 8 at stride 4 and 32 of 4 × 4 at stride 2, a linear layer of 256. Source: KF."""
    return _convolutions([(16, 8, 4, 0), (32, 4, 2, 0)], img_size=img_size, **_plain(kwargs, width=256))


@register_model
def policy_tiny(pretrained: bool = False, img_size: int | Sequence[int] = 10, **kwargs: Any) -> PolicyNet:
    """For boards of a few cells: convolutions 3 × 3 of 16 and, at stride 2, 32 filters, a linear layer of 128."""
    return _convolutions([(16, 3, 1, 1), (32, 3, 2, 1)], img_size=img_size, **_plain(kwargs, width=128))


def _perceptron(num_classes: int, in_chans: int, img_size: int | Sequence[int], width: int) -> PolicyNet:
    inputs = in_chans * math.prod(_sides(img_size))
    layers = {
        "linear1": nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh()),
        "linear2": nn.Sequential(nn.Linear(width, width), nn.Tanh()),
    }
    return PolicyNet(layers, [width, width], num_classes)


@register_model
def policy_mlp(pretrained: bool = False, img_size: int | Sequence[int] = 1, **kwargs: Any) -> PolicyNet:
    """For vectors: two linear layers of 64, each with a hyperbolic tangent."""
    return _perceptron(img_size=img_size, **_plain(kwargs, width=64))


def build(arch: str, args: Mapping[str, Any], facts: GameFacts, at: str) -> nn.Module:
    """A policy for a game, with fresh weights from torch's global generator.

    Args:
        arch: an architecture of timm's registry.
        args: its keyword arguments.
        facts: of the game.
        at: the policy's place in the configuration.

    Raises:
        KtError: the architecture refuses the arguments, or does not answer to the game's observations with a logit for
            each action and a value.
    """
    try:
        policy = models.build(arch, arguments(arch, args, facts), facts.actions + 1, facts.shape[0])
        with torch.random.fork_rng(devices=[]):
            models.check_outputs(models.run_once(policy, facts.shape)[1], (facts.actions + 1,))
    except KtError as error:
        text = str(error).removeprefix("zoo: ")
        if "img_size" not in args:  # it comes from the game
            text = text.replace("args.img_size: ", "")
        given = f" (args: {dict(args)})" if args and "cannot be built" not in text else ""
        raise KtError(f"{at}: {facts.id} ({facts.actions} actions): {text}{given}") from error
    return policy


def arguments(arch: str, args: Mapping[str, Any], facts: GameFacts) -> dict[str, Any]:
    """Keyword arguments of a network for a game: the given ones, and ``img_size`` where its entry point has it."""
    takes = "img_size" in inspect.signature(timm.model_entrypoint(arch)).parameters
    return ({"img_size": list(facts.shape[1:])} if takes else {}) | dict(args)
