"""Sections of a study of policies: games, the training of a policy, members of its zoo. No torch, no gymnasium here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, create_model

from kt.errors import KtError, quoted, unknown
from kt.spec import Arguments, File, Seed, Spec
from kt.transfer.training import optional


class Game(Spec):
    """A game: an environment that gymnasium knows, and how a policy sees and plays it."""

    id: str = Field(description="an id that gymnasium knows, as `kt/Catch-v0` or `ALE/Pong-v5`")
    args: Arguments = Field(default_factory=dict, description="keyword arguments for `gymnasium.make`")
    frame_stack: PositiveInt | None = Field(
        None, le=100, description="latest frames that a policy sees at once; default: 4 of Atari, else 1"
    )
    frame_skip: PositiveInt | None = Field(
        None, le=1000, description="frames for which an action is repeated; default: 4 of Atari, else 1"
    )
    noops: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="most actions that do nothing at the start of an episode; default: 30 of Atari, else 0",
    )


def _by_id(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


Env = Annotated[Game, BeforeValidator(_by_id, json_schema_input_type=str | Game)]
"""A game, for which its id may stand."""


class A2C(Spec):
    """Training of a policy: synchronous advantage actor-critic (A2C).

    Loss of a rollout: mean of −ln π(a|s) · A − `entropy` · H(π) + ½ · `value` · (R − V)².
    """

    steps: PositiveInt = Field(200_000, le=10**12, description="actions in all, of all copies of the game together")
    envs: PositiveInt = Field(16, le=10_000, description="copies of the game that are played at once")
    rollout: PositiveInt = Field(5, le=100_000, description="actions of each copy between two updates")
    discount: float = Field(0.99, ge=0, le=1, description="γ")
    entropy: float = Field(0.01, ge=0, description="weight of the policy's entropy")
    value: float = Field(0.5, ge=0, description="weight of the value's error")
    clip: PositiveFloat | None = Field(40.0, description="largest norm of the gradient; longer ones are shortened")
    lr: PositiveFloat = Field(1e-3, description="learning rate of the first update")
    schedule: Literal["linear", "constant"] = Field("linear", description="of the learning rate: to zero, or constant")
    optimiser: Literal["adam", "rmsprop"] = "adam"
    clip_rewards: bool = Field(True, description="learn from rewards cut to −1 … 1; returns are told unclipped")
    evaluations: PositiveInt = Field(
        20, le=100_000, description="parts of the training, each with an evaluation at its end"
    )
    episodes: PositiveInt = Field(20, le=10**6, description="episodes of each of these evaluations")

    @property
    def updates(self) -> int:
        """Optimiser steps."""
        return self.steps // (self.envs * self.rollout)

    @property
    def epochs(self) -> int:
        """Parts of the training, where other tasks have epochs."""
        return self.evaluations

    def check(self, at: str) -> None:
        """Fail where the actions are fewer than an update for each evaluation; ``at`` is its place."""
        if self.updates < self.evaluations:
            least = self.evaluations * self.batch_size
            text = f"{self.steps} are fewer than evaluations x envs x rollout ({least}), an update for each evaluation"
            raise KtError(f"{at}.steps: {text}")

    @property
    def batch_size(self) -> int:
        """Actions of an update."""
        return self.envs * self.rollout


class ChangesBase(Spec):
    """Options in place of those of another training."""

    def of(self, training: A2C) -> A2C:
        """The training with these changes."""
        changes = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        return training.model_copy(update=changes)


A2CChanges: type[ChangesBase] = create_model(
    "A2CChanges",
    __base__=ChangesBase,
    __doc__=ChangesBase.__doc__,
    **{name: optional(field) for name, field in A2C.model_fields.items()},
)


NETS = ("policy_a3c", "policy_tiny", "policy_mlp")
"""Networks of this project, each with the argument ``width``."""

WIDEST = 8192
"""Largest width of their linear layers."""


class Net(Spec):
    """A network for a policy."""

    arch: str = Field(description="`policy_tiny`, `policy_a3c`, `policy_mlp`, or a model that `zoo.modules` register")
    args: Arguments = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")

    def check(self, at: str) -> None:
        """Fail where a network of this project does not take its arguments; ``at`` is its place."""
        for name, value in self.args.items() if self.arch in NETS else ():
            if name != "width":
                raise KtError(f"{at}.args: {unknown('argument', str(name), ['width'])}")
            if type(value) is not int or not 1 <= value <= WIDEST:
                raise KtError(f"{at}.args.width: must be a whole number from 1 to {WIDEST}, not {quoted(value)}")


class Policy(Net):
    """A member of the zoo: a policy and the game that it plays, trained here or from a checkpoint."""

    env: Env = Field(description="the game: an id of gymnasium, or a mapping with `id` and settings")
    train: A2C | None = Field(None, description="train it from random weights")
    seed: Seed = Field(0, description="of `train`")
    checkpoint: File | None = Field(None, description="file with the policy's weights, as members of other tasks have")
