"""Segmentation networks of ``segmentation_models_pytorch`` on timm encoders, as architectures of timm's registry.

``smp_unet``, ``smp_fpn``, ``smp_segformer``, …: an architecture for each that the library has, under its own names of
tensors. ``args.encoder`` is any timm model that gives feature maps, ``args.encoder_weights`` starts its training from
timm's weights of that tag, and all other arguments are passed on. Importing this module imports neither torch nor timm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kt.errors import KtError, listed, nearest, quoted, unknown
from kt.tasks.task import Task
from kt.zoo import registry
from kt.zoo.registry import Probe, Registry
from kt.zoo.spec import Member, ZooSpec

if TYPE_CHECKING:
    from torch import nn

PREFIX = "smp_"
"""Begins the names of these architectures."""

OWN = {
    "encoder_name": "the encoder is given as `encoder`",
    "in_channels": "the images determine the channels",
    "classes": "the data set determines the classes",
    "activation": "answers are logits, without an activation",
    "aux_params": "a model gives one answer, without a second head",
}
"""Arguments of the networks that are not the user's to give, and why."""


def encoder_of(member: Member) -> str | None:
    """The timm model that is the encoder of a member, with its tag if it has one; None of other architectures."""
    encoder = member.args.get("encoder") if member.arch.startswith(PREFIX) else None
    return encoder if isinstance(encoder, str) else None


def encoder_weights(member: Member, known: Registry) -> str | None:
    """The pretrained tag whose weights a member's encoder starts from; None where it starts from random ones."""
    encoder = encoder_of(member)
    return known.tag(encoder) if encoder and member.args.get("encoder_weights") else None


def published(member: Member, known: Registry) -> str | None:
    """The pretrained tag whose weights a member, or its encoder, starts from; None where there is none."""
    return member.arch if member.pretrained else encoder_weights(member, known)


def backbone(member: Member, known: Registry) -> str:
    """The architecture whose family, kind and year are a member's: that of its encoder, or its own."""
    encoder = encoder_of(member)
    return (known.arch(encoder) if encoder else None) or member.arch.partition(".")[0]


def check(zoo: ZooSpec, known: Registry, task: Task) -> None:
    """Fail where a member's architecture does not fit the task, or has no encoder that timm knows.

    Args:
        zoo: with every member complete.
        known: what timm and the user's modules register.
        task: what is learnt.

    Raises:
        KtError: with the key, the value, and what is allowed.
    """
    for name, member in zoo.models.items():
        at, ours = f"zoo.models.{name}", member.arch.startswith(PREFIX)
        if ours and not task.dense:
            raise KtError(f"{at}.arch: {member.arch!r} gives classes of pixels, which the task {task.name!r} has not")
        if task.spatial and member.pretrained:
            args = f"{{encoder: {member.arch}, encoder_weights: true}}"
            hint = f"for the task {task.name!r} they can be an encoder's: arch: {PREFIX}unet, args: {args}, train: …"
            instead = hint if task.dense else f"the task {task.name!r} needs maps: give `checkpoint` or `train`"
            raise KtError(f"{at}.pretrained: timm's published weights classify whole images; {instead}")
        if ours:
            _check_args(f"{at}.args", member, known)


def _check_args(at: str, member: Member, known: Registry) -> None:
    args = member.args
    for key, reason in OWN.items():
        if key in args:
            raise KtError(f"{at}.{key}: {reason}; leave it out")
    encoder, weights = args.get("encoder"), args.get("encoder_weights", False)
    if not isinstance(encoder, str):
        given = f", not {quoted(encoder)}" if "encoder" in args else ""
        raise KtError(f"{at}.encoder: a timm model is needed, with its pretrained tag or without{given}")
    if known.arch(encoder) is None or encoder.startswith(PREFIX):
        names = {name for name in known.models if not name.startswith(PREFIX)}
        allowed = f"the {len(names)} names of timm and zoo.modules{nearest(encoder, names)}"
        raise KtError(f"{at}.encoder: unknown model {quoted(encoder)}; allowed: {allowed}")
    if not isinstance(weights, bool):
        tag = f"; the tag of the weights belongs to `encoder`: {encoder.partition('.')[0]}.{weights}"
        raise KtError(f"{at}.encoder_weights: allowed: true or false, not {quoted(weights)}{tag}")
    if (weights or "." in encoder) and known.tag(encoder) is None:
        have = [tag for tag in known.tags if tag.startswith(f"{encoder.partition('.')[0]}.")]
        hint = f"its tags: {listed(have)}" if have else "timm publishes no weights for it"
        raise KtError(f"{at}.encoder: no pretrained weights {quoted(encoder)}; {hint}{nearest(encoder, have)}")
    if weights and member.checkpoint:
        raise KtError(f"{at}.encoder_weights: the checkpoint has the encoder's weights too; leave it out")


def differing(settings: Mapping[str, Any], member: Member) -> list[str]:
    """Options of a network, as the library saves them beside weights, that are not the member's, with both values."""
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    network = MODEL_ARCHITECTURES_MAPPING.get(member.arch.removeprefix(PREFIX))
    if network is None or not member.arch.startswith(PREFIX):
        return []
    options = inspect.signature(network.__init__).parameters
    ours = {key: member.args.get(key, options[key].default) for key in options if key not in (*OWN, "encoder_weights")}
    pairs = {key: (settings[key], value) for key, value in ours.items() if key in settings}
    return [f"args.{key} {theirs}, here {own}" for key, (theirs, own) in pairs.items() if _plain(theirs) != _plain(own)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def probe(zoo: ZooSpec, outputs: int, channels: int, answer: tuple[int | None, ...]) -> dict[str, Probe]:
    """Size, operations and shape of the answer of every member of a task whose answers are maps, by name.

    Args:
        zoo: with every member complete.
        outputs: of a model; any number where it is not known yet.
        channels: colour channels of the images.
        answer: shape of an answer; None for sides that may be any.

    Raises:
        KtError: a member cannot be built with its arguments, does not take images of its input's size, or does not
            answer for each pixel.
    """
    shapes = {name: zoo.input_of(name).shape(channels) for name in zoo.models}
    wanted = [(member.arch, member.args, outputs, shapes[name], answer) for name, member in zoo.models.items()]
    found = dict[str, Probe]()
    for (name, member), probed in zip(zoo.models.items(), registry.probes(wanted, zoo.modules), strict=True):
        if isinstance(probed, str):
            of_classes = len(answer) == 3 and not member.arch.startswith(PREFIX)
            flat = of_classes and probed.startswith("the model gives [1, ")
            hint = f"; as an encoder: arch: {PREFIX}unet, args: {{encoder: {member.arch}}}" if flat else ""
            raise KtError(f"zoo.models.{name}: {probed}{hint}")
        found[name] = probed
    return found


def register() -> None:
    """Register the networks with timm, those that are not there yet."""
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING
    from timm.models import is_model, register_model

    for name, network in MODEL_ARCHITECTURES_MAPPING.items():
        if not is_model(f"{PREFIX}{name}"):
            register_model(_entry(f"{PREFIX}{name}", network))


def _entry(name: str, network: type[nn.Module]) -> Callable[..., nn.Module]:
    """Entry point of a network for timm."""
    from timm.models import load_pretrained

    headed: Callable[..., nn.Module] = type(network.__name__, (Headed, network), {"__module__": __name__})
    options = [option for option in inspect.signature(network.__init__).parameters if option not in OWN]

    def entry(
        pretrained: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        encoder: str = "",
        encoder_weights: bool = False,
        **kwargs: Any,
    ) -> nn.Module:
        given = {key: value for key, value in kwargs.items() if not key.startswith(("pretrained_", "cache_dir"))}
        _check_options(given, options)
        whole = kwargs.get("pretrained_cfg") if pretrained else None  # of a folder, or a repository, with all weights
        weights = True if pretrained and encoder_weights and not whole else None
        try:
            made = headed(f"tu-{encoder}", encoder_weights=weights, in_channels=in_chans, classes=num_classes, **given)
        except ValueError as error:
            if "downsampling pattern" not in str(error):
                raise
            raise ValueError(
                f"{encoder} gives no maps of halving size; {PREFIX}dpt takes plain transformers"
            ) from error
        if whole:
            load_pretrained(made, whole, num_classes, in_chans)
        return made

    entry.__name__ = entry.__qualname__ = name
    return entry


def _check_options(given: Mapping[str, Any], options: list[str]) -> None:
    """Fail where an option of the decoder is not known: the library takes it for one of the encoder."""
    for key in given:
        if key not in options and key.startswith(("decoder_", "encoder_")):
            known = [option for option in options if option.startswith(("decoder_", "encoder_", "upsampling"))]
            raise ValueError(unknown("argument", key, known))


class Headed:
    """What timm's models have and these networks lack, for probing, features and errors."""

    segmentation_head: nn.Module
    encoder: Any

    def get_classifier(self) -> nn.Module:
        """The convolution that gives the logits."""
        from torch import nn

        return [layer for layer in self.segmentation_head.modules() if isinstance(layer, nn.Conv2d)][-1]

    @property
    def num_features(self) -> int:
        """Channels of the decoder's output."""
        head: Any = self.get_classifier()
        return int(head.in_channels)

    def check_input_shape(self, x: Any) -> None:
        """Fail where the encoder's stride does not divide the sides of the images, for networks that need it."""
        stride = self.encoder.output_stride if getattr(self, "requires_divisible_input_shape", True) else 1
        for side in x.shape[-2:]:
            if side % stride:
                below, above = side // stride * stride, (side // stride + 1) * stride
                near = f"{below} or {above}" if below else str(above)
                raise ValueError(f"its sides must be multiples of {stride}, as {near} instead of {side}")
