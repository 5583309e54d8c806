"""The student with its teachers attached: what knowledge flow trains. Source: KF section 3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt.tasks.losses import cross_entropy, distillation
from kt.zoo.stages import Stage, changing, features


class Candidate(NamedTuple):
    """A teacher's stage that may flow into a student's: the teacher's position and the stage."""

    teacher: int
    stage: Stage


class Inlet(NamedTuple):
    """A stage of the student and what may flow into it."""

    stage: Stage
    candidates: tuple[Candidate, ...]


Given = dict[Candidate, Tensor]
"""Maps of candidates, [B, C, H, W]."""


def inlets(student: Sequence[Stage], teachers: Sequence[Sequence[Stage]], every: bool) -> list[Inlet]:
    """Candidates for each stage of the student.

    Args:
        student: its stages that take something.
        teachers: the stages of each teacher that may give something.
        every: whether all of them are candidates; else of each teacher the one of nearest relative depth, the earlier
            of equals.
    """
    found = []
    for stage in student:
        chosen = []
        for i, stages in enumerate(teachers):
            near = min(stages, key=lambda other: round(abs(other.depth - stage.depth), 9))
            chosen += [Candidate(i, other) for other in (stages if every else [near])]
        found.append(Inlet(stage, tuple(chosen)))
    return found


class Mixture(nn.Module):
    """A student whose stages take h ← w_self · h + Σ_i w_i · Q_i(h_i), with h_i the features of frozen teachers.

    The weights w are the softmax of free scalars, Q_i a 1 x 1 convolution of the teacher's map, resized to the
    student's by averaging. Student, Q and scalars are its parameters; the teachers are none of its modules, so that
    they neither learn nor lie in checkpoints. Before training, all weights of a stage are equal.

    It takes a view of the images for the student and one for each teacher, and lets nothing flow once the student is
    on its own.

    Args:
        student: in its place on the device.
        teachers: on the same device; they are put into eval mode.
        inlets: which stages take what; all have the same number of candidates.
        epochs: of the training.
        steps: of the training.
        batch: of what ``seen`` counts, in a step.
        until: share of the training after which the student is on its own, above 0 and at most 1.
        rate: the softmax is taken of ``rate`` times the parameters: how much faster they move than others with an
            optimiser whose steps do not depend on the gradient's size, as Adam's.
    """

    seen: Tensor
    trace: Tensor
    attached: Tensor

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        inlets: Sequence[Inlet],
        epochs: int,
        steps: int,
        batch: int,
        until: float,
        rate: float,
    ) -> None:
        super().__init__()
        self.student = student
        self.teachers = tuple(teacher.eval() for teacher in teachers)
        self.inlets = tuple(inlets)
        self.steps, self.batch, self.until, self.rate = steps, batch, until, rate
        device, sources = next(student.parameters()).device, 1 + len(inlets[0].candidates)
        self.transforms = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c.stage.channels, inlet.stage.channels, 1) for c in inlet.candidates)
            for inlet in inlets
        ).to(device)
        self.scalars = nn.Parameter(torch.zeros(len(inlets), sources, device=device))
        # on the CPU, where they are read
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trace", torch.zeros(epochs, len(inlets), sources))
        self.register_buffer("attached", torch.zeros(epochs, dtype=torch.float64))

    @property
    def progress(self) -> float:
        """Share of the training's steps that are done; the same for all pieces of a batch."""
        return int(self.seen) // self.batch / self.steps

    @property
    def open(self) -> bool:
        """Whether teachers still have a say; to the end and after it where the student is never on its own."""
        return self.scalars.shape[1] > 1 and (self.until == 1 or self.progress < self.until)

    def free(self) -> Tensor:
        """The free scalars of each stage, its own first, [J, 1 + K]."""
        return self.rate * self.scalars

    def weights(self) -> Tensor:
        """The normalised weights of each stage, its own first, float32 [J, 1 + K]; its own is 1 once it is alone."""
        if self.open:
            return mixing(self.free())
        return F.one_hot(torch.zeros(len(self.scalars), dtype=torch.int64), self.scalars.shape[1]).to(self.scalars)

    def note(self, epoch: int, attached: float) -> None:
        """Note the weights after an epoch, counted from 0, in ``trace``, float32 [epochs, J, 1 + K].

        ``attached`` is the metric of the student with its teachers; the buffer of that name has it, float64 [epochs].
        """
        self.trace[epoch], self.attached[epoch] = self.weights().detach(), attached

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Logits [B, C] from the student's view of a batch and each teacher's."""
        logits: Tensor = self.flowing(views) if self.open else self.student(views[0])
        return logits

    def flowing(self, views: Sequence[Tensor]) -> Tensor:
        """Logits [B, C] of the student with what its teachers add."""
        return self.mixed(views[0], self.given(views[1:]))

    def given(self, views: Sequence[Tensor]) -> Given:
        """Maps that the teachers give for their views of a batch, without gradient."""
        given: Given = {}
        for i, (teacher, x) in enumerate(zip(self.teachers, views, strict=True)):
            asked = list(dict.fromkeys(c for inlet in self.inlets for c in inlet.candidates if c.teacher == i))
            given |= zip(asked, features(teacher, x, [c.stage for c in asked]), strict=True)
        return given

    def mixed(self, view: Tensor, given: Given) -> Tensor:
        """Logits [B, C] of the student with what these maps add."""
        changes = {
            inlet.stage: partial(mix, weights, self.transforms[j], [given[c] for c in inlet.candidates], inlet.stage)  # type: ignore[arg-type]
            for j, (inlet, weights) in enumerate(zip(self.inlets, self.weights(), strict=True))
        }
        with changing(self.student, changes):
            logits: Tensor = self.student(view)
        return logits

    def dependency(self, most: float) -> Tensor | float:
        """λ1 · L_dep, with λ1 as large as it is by now and ``most`` at its largest; 0 once the student is alone."""
        return most * grown(self.progress, self.until) * dependency_loss(self.free()) if self.open else 0.0


class Flow(Mixture):
    """Such a student that learns from labels, and remembers its last output for each transfer image.

    Args:
        student: as for ``Mixture``; so are ``teachers``, ``inlets``, ``epochs``, ``until`` and ``rate``.
        images: transfer images, of which it remembers its last output.
        classes: outputs of the student.
        steps: of an epoch.
        batch: images of a step.
    """

    previous: Tensor
    known: Tensor

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        inlets: Sequence[Inlet],
        images: int,
        classes: int,
        epochs: int,
        steps: int,
        batch: int,
        until: float,
        rate: float,
    ) -> None:
        super().__init__(student, teachers, inlets, epochs, epochs * steps, batch, until, rate)
        device = self.scalars.device
        self.register_buffer("previous", torch.zeros(images, classes, device=device))
        self.register_buffer("known", torch.zeros(images, dtype=torch.bool, device=device))

    def record(self, accuracy: float) -> None:
        """Note the weights at the end of an epoch, and the accuracy with teachers, percent."""
        self.note(int(self.seen) * len(self.trace) // (self.steps * self.batch) - 1, accuracy)

    def loss(self, logits: Tensor, labels: Tensor, positions: Tensor, dependency: float, stability: float) -> Tensor:
        """Task loss + λ1 · L_dep + λ2 · KL(previous output ‖ output) of each sample, float32 [B].

        λ1 grows from nothing, and the previous output is the one that the network gave the same image an epoch ago.
        The network then remembers these outputs, and has seen these images.

        Args:
            logits: of a batch, [B, C].
            labels: int64 [B].
            positions: of the batch among the transfer images, int64 [B].
            dependency: λ1 at its largest.
            stability: λ2.
        """
        total = cross_entropy(logits, labels) + self.dependency(dependency)
        total = total + stability * self.known[positions] * stability_loss(self.previous[positions], logits)
        self.previous[positions] = logits.detach().float()
        self.known[positions] = True
        self.seen += len(logits)
        return total


def mix(
    weights: Tensor, transforms: Iterable[nn.Module], given: Sequence[Tensor], stage: Stage, tensor: Tensor
) -> Tensor:
    """w_self · h + Σ_i w_i · Q_i(h_i), in the form of a stage.

    Args:
        weights: w, the first one w_self, [1 + K].
        transforms: Q, each from the channels of its candidate to those of the stage.
        given: the candidates' maps, [B, C_i, H_i, W_i].
        stage: the student's.
        tensor: the student's features h, in the stage's form.
    """
    weights = weights.to(tensor.dtype)
    total = weights[0] * tensor
    for weight, transform, other in zip(weights[1:], transforms, given, strict=True):
        resized = F.adaptive_avg_pool2d(other, stage.grid)
        total = total + weight * stage.write(transform(resized)).to(tensor.dtype)
    return total


def mixing(scalars: Tensor) -> Tensor:
    """Normalised weights of each stage's own features and its candidates: a softmax, float32 [J, 1 + K].

    Args:
        scalars: free scalars, of each stage's own features first, [J, 1 + K].
    """
    return scalars.float().softmax(1)


def dependency_loss(scalars: Tensor) -> Tensor:
    """−Σ_j log w_self_j over the stages j, float32 []: zero where no stage takes anything from a teacher.

    Args:
        scalars: as for ``mixing``.
    """
    return -scalars.float().log_softmax(1)[:, 0].sum()


def stability_loss(previous: Tensor, logits: Tensor) -> Tensor:
    """KL(previous output ‖ current output) of each sample, float32 [B]; the previous output gets no gradient.

    Args:
        previous: logits that the network gave the same images before, [B, C].
        logits: those that it gives now, [B, C].
    """
    return distillation(previous.detach(), logits, 1.0)


def grown(progress: float, until: float) -> float:
    """Share of λ1 that counts at a point of the training: a line from 0 at its start to 1 at ``until``.

    Args:
        progress: share of the training that is done, 0 to 1.
        until: share after which the student is on its own, above 0.
    """
    return min(1.0, progress / until)
