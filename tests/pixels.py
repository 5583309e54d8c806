"""Dense answers for tests, what methods make of them, and the same as plain loops over pixels in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from batches import taught_by
from torch import Tensor

from kt.tasks.segmentation import IGNORED, Segmentation
from kt.tasks.task import Task
from kt.transfer.batch import Batch, Examples
from kt.transfer.method import Method, Partitioned, registry

TASK = Segmentation()
SIDE, CLASSES = 3, 4

Pixel = tuple[int, int]


def draw(seed: int, n: int = 3, side: int = SIDE, models: int = 3, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Logits of some models [models, n, classes, side, side], and masks with a pixel or more without a truth."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, classes, (n, side, side), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.15] = IGNORED
    if side > 1:
        masks[:, 0, 0], masks[:, 1, 1] = IGNORED, 0
    return 2 * torch.randn(models, n, classes, side, side, generator=generator), masks.byte()


def variants() -> dict[str, Method]:
    """Every method of one training that suits dense answers, with all that decides who teaches a pixel."""
    found: dict[str, Method] = {}
    for name, method in registry().items():
        if not method.trains or method.run is not Method.run or method.uses_features:
            continue
        found[name] = method()
        if issubclass(method, Partitioned):
            found[f"{name} pixel"] = method.model_validate({"level": "pixel"})
        if "student" in method.model_fields:
            found[f"{name} running"] = method.model_validate({"student": "running"})
    smoothed = {"label_smoothing": 0.1, "temperature": 2.0}
    return found | {
        "xekl smoothed": registry()["xekl"].model_validate({**smoothed, "alpha": 0.3}),
        "bikd stopped": registry()["bikd"].model_validate({**smoothed, "level": "pixel", "stop_gradient": True}),
        "xekl_mcl running": registry()["xekl_mcl"].model_validate({"flips": "running", "top": 2}),
    }


def lesson(method: Method, models: Tensor, masks: Tensor, task: Task = TASK) -> Examples:
    """Images that the second of some models is taught by the others, [M, N, …]; by one where the method takes one."""
    teachers = models[1:] if method.takes != "pair" else models[1]
    return taught_by(method, teachers, models[0], masks, task=task)


def everything(examples: Examples) -> Batch:
    return examples.at(torch.arange(len(examples)))


def answers(method: Method, seed: int, **shape: int) -> Tensor:
    """Logits of the student in training [N, C, H, W], or of all models [M, N, C, H, W], that carry gradient."""
    models, _ = draw(seed + 1, **shape)
    return (models if method.joint else models[0]).clone().requires_grad_(True)


def learnt(method: Method, output: Tensor, examples: Examples, task: Task = TASK) -> tuple[Tensor, Tensor]:
    """Loss per image, and the gradient of its mean."""
    loss = method.loss(task, output, everything(examples))
    (gradient,) = torch.autograd.grad(loss.mean(), output)
    return loss.detach(), gradient


def valid(mask: Tensor) -> list[Pixel]:
    """The pixels of an image that have a truth."""
    return [(y, x) for y in range(len(mask)) for x in range(len(mask[0])) if mask[y, x] != IGNORED]


def softmax(z: Tensor, temperature: float = 1.0) -> Tensor:
    powers = (z.double() / temperature).exp()
    return powers / powers.sum()


def divergence(target: Tensor, own: Tensor, temperature: float) -> Tensor:
    """T² · KL of two pixels' logits [C]."""
    p, q = softmax(target, temperature), softmax(own, temperature)
    return temperature**2 * (p * (p / q).log()).sum()


def entropy(z: Tensor, label: int, smoothing: float) -> Tensor:
    """Cross-entropy of a pixel's logits [C]."""
    p = softmax(z)
    return -(1 - smoothing) * p[label].log() - smoothing * p.log().mean()


def best(values: Sequence[Callable[[Pixel], float]], pixels: list[Pixel], level: str) -> dict[Pixel, int]:
    """The model with the largest value of each pixel, or with the largest sum over all; the first of equals."""
    if level == "pixel":
        return {at: max(range(len(values)), key=lambda m, at=at: values[m](at)) for at in pixels}
    of_image = max(range(len(values)), key=lambda m: sum(values[m](at) for at in pixels))
    return dict.fromkeys(pixels, of_image)


def teaching(method: Method, models: Tensor, mask: Tensor) -> dict[Pixel, int]:
    """The model that teaches each pixel of an image, from logits [1 + K, C, H, W] with the frozen student first."""

    def of_label(m: int) -> Callable[[Pixel], float]:
        return lambda at: float(softmax(models[m][:, *at])[int(mask[at])].log())

    def confident(m: int) -> Callable[[Pixel], float]:
        return lambda at: float(softmax(models[m][:, *at]).max().log())

    value = confident if method.by_confidence else of_label
    return best([value(m) for m in range(len(models))], valid(mask), getattr(method, "level", "image"))


def target(method: Method, frozen: Tensor, teacher: Tensor, running: Tensor, label: int, which: int) -> Tensor | None:
    """Logits [C] that a pixel of the student imitates; None where nobody teaches it. ``which``: see ``teaching``."""
    judged = running if "running" in (getattr(method, "student", ""), getattr(method, "flips", "")) else frozen
    positive = int(teacher.argmax()) == label != int(judged.argmax())
    negative = int(teacher.argmax()) != label == int(judged.argmax())
    neither = not positive and not negative
    return {
        "kl": teacher,
        "xekl": teacher,
        "self": frozen,
        "kl_dp": teacher if which else frozen,
        "kl_dp_unsup": teacher if which else frozen,
        "parallel": teacher if which else frozen,
        "parallel_unsup": teacher if which else frozen,
        "flip_teacher": frozen if negative else teacher,
        "flip_student": teacher if positive else frozen,
        "flip_mean": (teacher + judged) / 2 if neither else (frozen if negative else teacher),
        "xekl_mcl": None if negative else teacher,
    }[method.name]


def loss(method: Method, teachers: Tensor, frozen: Tensor, output: Tensor, masks: Tensor) -> Tensor:
    """Loss per image, float64 [B], from the teachers' logits [K, B, C, H, W], and [B, C, H, W] of the others."""
    found = []
    temperature, smoothing = getattr(method, "temperature", 1.0), getattr(method, "label_smoothing", 0.0)
    alpha = {"finetune": 0.0}.get(method.name, getattr(method, "alpha", 1.0))
    for i, mask in enumerate(masks):
        total, pixels = torch.zeros((), dtype=torch.float64), valid(mask)
        which = teaching(method, torch.stack([frozen[i], *teachers[:, i]]), mask)
        for at in pixels:
            own, label = output[i][:, *at], int(mask[at])
            if method.name != "finetune":
                teacher = teachers[max(0, which[at] - 1), i][:, *at]
                imitated = target(method, frozen[i][:, *at], teacher, own, label, which[at])
                if imitated is not None:
                    likely = teacher.argsort(descending=True)[: getattr(method, "top", None)]
                    total = total + alpha * divergence(imitated[likely], own[likely], temperature)
            if alpha < 1:
                total = total + (1 - alpha) * entropy(own, label, smoothing)
        found.append(total / len(pixels))
    return torch.stack(found)


def joint(method: Method, output: Tensor, masks: Tensor) -> Tensor:
    """Loss of ``bikd`` per image, float64 [B], from the logits [M, B, C, H, W] of all models."""
    options = method.parameters()
    found = []
    for i, mask in enumerate(masks):
        total, pixels = torch.zeros((), dtype=torch.float64), valid(mask)
        order = list(range(len(output)))[::-1]  # of two equal models the second teaches
        which = teaching(method, output[order, i].detach(), mask)
        for at in pixels:
            teacher = order[which[at]]
            for m, model in enumerate(output):
                total = total + entropy(model[i][:, *at], int(mask[at]), options["label_smoothing"])
                if m != teacher:
                    source = output[teacher, i].detach() if options["stop_gradient"] else output[teacher, i]
                    far = divergence(source[:, *at], model[i][:, *at], options["temperature"])
                    total = total + options["weight"] * far
        found.append(total / len(pixels))
    return torch.stack(found)
