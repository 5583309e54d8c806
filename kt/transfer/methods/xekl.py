"""``xekl`` and ``xekl_mcl``: distillation mixed with cross-entropy; the second guards the student by slow weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from kt.errors import KtError
from kt.tasks import partition
from kt.transfer.methods.finetune import Supervised
from kt.transfer.methods.kl import KL
from kt.transfer.training import SlowWeights

if TYPE_CHECKING:
    from torch import Tensor

    from kt.tasks.task import Task
    from kt.transfer.batch import Batch


class XEKL(KL, Supervised):
    """alpha · distillation + (1 − alpha) · the loss against the truth.

    Source: FG section 4.1, alpha = 0.5. The published code passes softmax outputs to a cross-entropy that takes
    logits; here it gets the logits.
    """

    name: ClassVar[str] = "xekl"
    uses_labels: ClassVar[bool] = True
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the distillation loss")

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Mixed loss per image, float32 [B]."""
        distillation = super().loss(task, output, batch)
        return self.alpha * distillation + (1 - self.alpha) * self.supervised(task, output, batch.truth)


class XEKLMCL(XEKL):
    """alpha · distillation, but not on negative flips, + (1 − alpha) · cross-entropy; the slow weights are evaluated.

    Every ``every`` steps θ_slow ← tau · θ_slow + (1 − tau) · θ_fast, buffers of BatchNorm included; the fast weights
    train on. Evaluation and the improved student take the slow weights. The closer tau is to 1 and the fewer the
    steps, the less the student can change: the paper's tau of 0.9999 needs its 10,000 steps.

    Source: FG section 4.2, alpha = 0.68, tau = 0.9999, every 2 steps, at a learning rate of 0.01. The defaults are the
    paper's formula. The published code differs in six places; each is a parameter:

    - ``flips: running``: negative flips are those of the student in training, in train mode, judged in each step;
    - ``mean: taught``: the distillation loss is the mean over the taught samples of a batch, not over all of it;
    - ``top: 100``: both distributions are cut to the teacher's 100 likeliest classes and normalised there;
    - ``updates: each_epoch``: steps are counted anew in each epoch, with an update after its first step;
    - ``start: shared``: until the first update the slow weights are the fast ones themselves, so that they start as
      the weights after the first step;
    - ``evaluation: overwrites``: each evaluation leaves the slow weights in the student, which trains on from them.

    Not reproduced: the published cross-entropy gets softmax outputs where it takes logits, a bug; and the count of
    BatchNorm's batches is averaged there like a weight and copied here; nothing reads it.
    """

    name: ClassVar[str] = "xekl_mcl"
    version: ClassVar[int] = 2
    of_classes: ClassVar[bool] = True
    alpha: float = Field(0.68, ge=0, le=1, description="weight of the distillation loss")
    tau: float = Field(0.9999, ge=0, le=1, description="share of the slow weights that stays at each update")
    every: PositiveInt = Field(2, description="steps between two updates of the slow weights")
    flips: Literal["frozen", "running"] = Field("frozen", description="the student whose negative flips are not taught")
    mean: Literal["batch", "taught"] = Field("batch", description="images that the distillation loss is averaged over")
    top: PositiveInt | None = Field(
        None, description="likeliest classes of the teacher that are distilled; at most as many as there are, null: all"
    )
    updates: Literal["through", "each_epoch"] = Field(
        "through", description="how steps are counted: through all epochs, or anew in each with an update after step 1"
    )
    start: Literal["copied", "shared"] = Field(
        "copied", description="slow weights before the first update: those before training, or the fast ones"
    )
    evaluation: Literal["restores", "overwrites"] = Field(
        "restores", description="fast weights after an evaluation: as they were, or the slow ones"
    )

    def check(self, task: Task, at: str) -> None:
        """Refuse the mean over taught samples, too, where these are parts of an image."""
        super().check(task, at)
        if self.mean == "taught" and task.dense:
            raise KtError(
                f"{at}.mean: 'taught' is about whole images, which {task.name!r} teaches in part; allowed: batch"
            )

    @property
    def together(self) -> bool:
        """The mean over taught samples needs all of a batch."""
        return self.mean == "taught"

    def targets(self, task: Task, teacher: Tensor, frozen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits for every image that is no negative flip, the frozen student's elsewhere.

        Where each step judges anew, the teacher's logits for every image, and the mask at the start.
        """
        _, negative = partition.flips(teacher, frozen, truth)
        return (teacher if self.flips == "running" else partition.merge(~negative, teacher, frozen)), ~negative

    def loss(self, task: Task, output: Tensor, batch: Batch) -> Tensor:
        """Mixed loss per image, float32 [B]; on negative flips the cross-entropy term alone."""
        taught = batch.taught
        if self.flips == "running":
            taught = ~partition.flips(batch.targets, output, batch.truth)[1]
        distilled = self._distilled(task, output, batch.targets)
        distilled = task.mean(distilled.where(taught, distilled.new_zeros(())), batch.truth)
        if self.mean == "taught":
            distilled = distilled * (len(taught) / taught.sum().clamp(min=1))
        return self.alpha * distilled + (1 - self.alpha) * self.supervised(task, output, batch.truth)

    def _distilled(self, task: Task, output: Tensor, teacher: Tensor) -> Tensor:
        if self.top and self.top < teacher.shape[1]:
            likely = teacher.topk(self.top, dim=1).indices
            teacher, output = teacher.gather(1, likely), output.gather(1, likely)
        return task.imitate(teacher, output, self.temperature)

    def slow_weights(self) -> SlowWeights:
        """Settings of the slow weights."""
        each_epoch, shared = self.updates == "each_epoch", self.start == "shared"
        return SlowWeights(self.tau, self.every, each_epoch, shared, self.evaluation == "overwrites")
