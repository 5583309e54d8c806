"""A student with its teachers attached that learns a game: knowledge flow's network with another memory. Source: KF."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kt.transfer.knowledge_flow import Given, Inlet, Mixture, stability_loss


class PolicyFlow(Mixture):
    """A student whose hidden layers take h ← w_self · h + Σ_i w_i · Q_i(h_i), with h_i of teachers that see the same.

    With one update a rollout, the policy that acts is the one that learns, and a term that holds on to it would be
    zero. So the network holds on to a copy of all its parameters (student, Q and scalars) that is renewed every few
    updates, and when the teachers leave.

    Args:
        student: as for ``Mixture``; so are ``teachers``, ``inlets``, ``until`` and ``rate``.
        parts: of the training, each with an evaluation at its end.
        updates: of the training.
        most: λ1 at its largest.
        stability: λ2.
        refresh: updates between two copies.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        inlets: Sequence[Inlet],
        parts: int,
        updates: int,
        until: float,
        rate: float,
        most: float,
        stability: float,
        refresh: int,
    ) -> None:
        super().__init__(student, teachers, inlets, parts, updates, 1, until, rate)
        self.most, self.stability, self.refresh = most, stability, refresh
        self._learnt = dict(self.named_parameters())
        self.earlier = nn.ParameterList(nn.Parameter(p.detach().clone(), False) for p in self._learnt.values())
        self._seen: tuple[Tensor, Given] | None = None

    def forward(self, observations: Tensor) -> Tensor:  # type: ignore[override]
        """Logits and value [B, A + 1] of observations [B, C, H, W], which all networks see."""
        return super().forward([observations] * (1 + len(self.teachers)))

    def given(self, views: Sequence[Tensor]) -> Given:
        """The same; the copy asks for the observations that the network has just been asked for."""
        if self._seen is None or self._seen[0] is not views[0]:
            self._seen = views[0], super().given(views)
        return self._seen[1]

    def extra(self, observations: Tensor, outputs: Tensor, done: float) -> Tensor | float:
        """λ1 · L_dep + λ2 · mean KL(policy of the copy ‖ policy), of a rollout.

        Args:
            observations: [B, C, H, W].
            outputs: of this network for them, [B, A + 1].
            done: not needed; the network counts its updates.
        """
        return self.dependency(self.most) + self.stability * self.moved(observations, outputs)

    def moved(self, observations: Tensor, outputs: Tensor) -> Tensor | float:
        """Mean KL(policy of the copy ‖ policy) on some observations; 0 where it counts for nothing."""
        if not self.stability:
            return 0.0
        with torch.no_grad():
            before = functional_call(self, dict(zip(self._learnt, self.earlier, strict=True)), (observations,))
        return stability_loss(before[:, :-1], outputs[:, :-1]).mean()

    def updated(self) -> None:
        """Count an update, and renew the copy where that is due."""
        was_open = self.open
        self.seen += 1
        if int(self.seen) % self.refresh == 0 or self.open != was_open:
            for copy, parameter in zip(self.earlier, self._learnt.values(), strict=True):
                copy.data.copy_(parameter.data)
