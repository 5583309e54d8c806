"""Knowledge flow's parts: losses by hand, stages of any backbone, and who gets a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kt.zoo.digits  # noqa: F401 (registers small architectures)
from kt.errors import KtError
from kt.transfer import knowledge_flow
from kt.transfer.flow import needs_attached
from kt.transfer.knowledge_flow import Candidate, Flow, Inlet, inlets, mix
from kt.transfer.memory import activations, held
from kt.transfer.training import Training
from kt.zoo.models import macs
from kt.zoo.stages import Stage, changing, features, find

RESNET = {"channels": [8, 8, 16, 16], "stem_width": 8}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2}


def build(arch: str, classes: int = 3, seed: int = 0, **args: object) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(arch, num_classes=classes, in_chans=1, **args)
    with torch.no_grad():  # parameters that begin with zeros hide what depends on them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def resnet(seed: int = 0) -> nn.Module:
    return build("resnet10t", seed=seed, **RESNET)


def images(n: int = 4, side: int = 16, channels: int = 1) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def network(
    student: nn.Module | None = None,
    teachers: Sequence[nn.Module] | None = None,
    until: float = 1.0,
    every: bool = False,
) -> Flow:
    """A ResNet with a ViT and a PoolFormer as teachers, 8 transfer images, 32 images in the whole training."""
    student = resnet() if student is None else student
    if teachers is None:
        teachers = [build("vit_tiny_patch16_224", 2, 1, **VIT), build("tiny_poolformer", 5, 2)]
    x = images(1)
    found = [find(teacher, x, (), "teacher") for teacher in teachers]
    torch.manual_seed(3)
    return Flow(student, teachers, inlets(find(student, x, (), "student"), found, every), 8, 3, 4, 2, 4, until, 1.0)


def step(flow: Flow, n: int = 4, dependency: float = 0.5, stability: float = 0.3) -> Tensor:
    logits = flow([images(n)] * (1 + len(flow.teachers)))
    return flow.loss(logits, torch.arange(n) % 3, torch.arange(n), dependency, stability)


# losses


def test_equal_scalars_give_equal_weights_and_a_known_dependency() -> None:
    scalars = torch.zeros(2, 3)
    assert knowledge_flow.mixing(scalars).tolist() == [pytest.approx([1 / 3] * 3)] * 2
    assert knowledge_flow.dependency_loss(scalars).item() == pytest.approx(2 * math.log(3))


def test_dependency_by_hand() -> None:
    scalars = torch.tensor([[math.log(6), math.log(3), math.log(1)], [math.log(2), math.log(1), math.log(1)]])
    assert knowledge_flow.mixing(scalars).tolist() == [pytest.approx([0.6, 0.3, 0.1]), pytest.approx([0.5, 0.25, 0.25])]
    assert knowledge_flow.dependency_loss(scalars).item() == pytest.approx(-math.log(0.6) - math.log(0.5))


@given(st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=4))
def test_dependency_and_weights_agree_with_a_plain_reference(free: list[list[float]]) -> None:
    expected, found_weights = 0.0, knowledge_flow.mixing(torch.tensor(free)).tolist()
    for j, scalars in enumerate(free):
        exponentials = [math.exp(value) for value in scalars]
        weights = [value / sum(exponentials) for value in exponentials]
        assert found_weights[j] == pytest.approx(weights, abs=1e-6)
        expected -= math.log(weights[0])
    found = knowledge_flow.dependency_loss(torch.tensor(free)).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found >= 0


def test_dependency_is_zero_where_nothing_is_taken_and_falls_as_the_own_scalar_rises() -> None:
    assert knowledge_flow.dependency_loss(torch.tensor([[200.0, 0.0]])).item() == 0
    free = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    torch.autograd.backward(knowledge_flow.dependency_loss(free))
    assert free.grad is not None
    assert torch.allclose(free.grad, knowledge_flow.mixing(free.detach()) - torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-6)


def test_stability_by_hand_and_without_gradient_to_the_past() -> None:
    previous = torch.log(torch.tensor([[0.5, 0.5]])).requires_grad_()
    now = torch.log(torch.tensor([[0.25, 0.75]])).requires_grad_()
    value = knowledge_flow.stability_loss(previous, now)
    assert value.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    torch.autograd.backward(value.sum())
    assert previous.grad is None
    assert now.grad is not None


def test_nothing_changed_costs_nothing() -> None:
    logits = images(5, 2).flatten(1)
    assert knowledge_flow.stability_loss(logits, logits + 7).abs().max() < 1e-6


def test_dependency_grows_in_a_line_and_stays() -> None:
    assert [knowledge_flow.grown(p, 0.8) for p in (0.0, 0.2, 0.4, 0.8, 1.0)] == pytest.approx([0, 0.25, 0.5, 1, 1])


def test_loss_is_the_sum_of_its_parts_by_a_plain_reference() -> None:
    flow = network()
    x, labels = [images(4)] * 3, torch.tensor([0, 1, 2, 0])
    first = step(flow)
    before = flow.previous[:4].clone()
    assert torch.allclose(first, nn.functional.cross_entropy(before, labels, reduction="none"))  # nothing grown yet
    with torch.no_grad():
        flow.scalars[0].copy_(torch.tensor([1.0, 0.5, 0.0]))
    logits = flow(x)
    found = flow.loss(logits, labels, torch.arange(4), 0.5, 0.3)
    p, q = before.softmax(1), logits.detach().softmax(1)
    dependency = -float(knowledge_flow.mixing(flow.scalars.detach())[:, 0].log().sum())
    for i in range(4):
        kl = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for c in range(3))
        expected = -float(q[i, labels[i]].log()) + 0.5 * (4 / 32) * dependency + 0.3 * kl
        assert found[i].item() == pytest.approx(expected, rel=1e-4)


# stages

BACKBONES = [
    ("resnet10t", RESNET, "first"),
    ("test_efficientnet", {}, "first"),
    ("test_byobnet", {}, "first"),
    ("tiny_poolformer", {}, "first"),
    ("test_mambaout", {}, "last"),
    ("tiny_mixer", {}, "tokens"),
    ("vit_tiny_patch16_224", VIT, "tokens"),
    ("deit_tiny_distilled_patch16_224", VIT, "tokens"),
]


@pytest.mark.parametrize(("arch", "args", "form"), BACKBONES, ids=[arch for arch, _, _ in BACKBONES])
def test_stages_of_any_backbone_are_read_written_and_changed(arch: str, args: dict[str, object], form: str) -> None:
    model, x = build(arch, **args), images(2, 16)
    stages = find(model, x[:1], (), "here")
    assert {stage.form for stage in stages} == {form}
    assert [stage.module for stage in stages] == [entry["module"] for entry in _listed(model)]
    assert [stage.channels for stage in stages] == [entry["num_chs"] for entry in _listed(model)]
    maps = features(model, x, stages)
    assert [tuple(m.shape) for m in maps] == [(2, s.channels, *s.grid) for s in stages]
    with torch.no_grad():
        plain = model(x)
        with changing(model, dict.fromkeys(stages, lambda tensor: tensor)):
            assert torch.equal(model(x), plain)
        for stage in stages:
            more = stage.write(
                torch.linspace(0, 1, stage.channels)[:, None, None].expand_as(features(model, x, [stage])[0])
            )
            with changing(model, {stage: lambda tensor, more=more: tensor + more}):
                assert not torch.equal(model(x), plain), stage
        assert torch.equal(model(x), plain)  # nothing stays attached


def _listed(model: nn.Module) -> list[dict[str, object]]:
    info = model.feature_info
    return list(getattr(info, "info", info))


def test_maps_are_timms_own_intermediate_features() -> None:
    for arch, args in (("vit_tiny_patch16_224", VIT), ("resnet10t", RESNET)):
        model: nn.Module = build(arch, **args)
        x = images(2)
        stages = find(model, x[:1], (), "here")
        with torch.no_grad():
            theirs = model.forward_intermediates(x, norm=False, intermediates_only=True)
        for ours, other in zip(features(model, x, stages), theirs, strict=True):
            assert torch.allclose(ours, other, atol=1e-5)


@given(st.sampled_from(["first", "last", "tokens", "vector"]), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2))
def test_reading_undoes_writing(form: str, side: int, channels: int, prefix: int) -> None:
    side, prefix = (1 if form == "vector" else side), (prefix if form == "tokens" else 0)
    stage = Stage("m", form, channels, (side, side), prefix, None, 1.0)  # type: ignore[arg-type]
    shape = {
        "first": (2, channels, side, side),
        "last": (2, side, side, channels),
        "tokens": (2, prefix + side * side, channels),
        "vector": (2, channels),
    }[form]
    tensor, image = torch.randn(shape), torch.randn(2, channels, side, side)
    written = stage.write(image)
    assert written.shape == tensor.shape
    assert torch.equal(stage.read(written), image)
    if prefix:  # tokens that stand for no place in the image
        assert torch.allclose(written[:, 0], image.mean((2, 3)), atol=1e-6)


def test_a_stage_that_a_module_gives_among_others_is_found_and_put_back() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[str, Tensor]:
            return "label", x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[1].mean((1, 2, 3))

    model, x = Model(), images(2)
    (stage,) = find(model, x[:1], ["pair"], "here")
    assert (stage.item, stage.form) == (1, "first")
    with changing(model, {stage: torch.zeros_like}):
        assert model(x).abs().max() == 0


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([9], "flow.a.student.stages: ResNet has 5 stages, but not 9; allowed: -5 to 4 (act1, layer1,"),
        (["layer7"], "flow.a.student.stages: ResNet has no module 'layer7'; its stages: act1, layer1"),
        ([0, "act1"], "flow.a.student.stages: the stage 'act1' is chosen twice"),
    ],
)
def test_a_stage_that_is_not_there_is_one_clear_line(chosen: list[int | str], said: str) -> None:
    with pytest.raises(KtError) as caught:
        find(resnet(), images(1), chosen, "flow.a.student.stages")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 36), (36, 4)])
@pytest.mark.parametrize("class_token", [False, True])
def test_tokens_of_oblong_images_are_maps_of_their_shape(height: int, width: int, class_token: bool) -> None:
    size = {"img_size": [height, width], "class_token": class_token, "global_pool": "token" if class_token else "avg"}
    model = build("vit_tiny_patch16_224", **{**VIT, **size})
    x = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    stages = find(model, x[:1], (), "here")
    assert {stage.grid for stage in stages} == {(height // 4, width // 4)}
    with torch.no_grad():
        theirs = model.forward_intermediates(x, norm=False, intermediates_only=True)
    for ours, other in zip(features(model, x, stages), theirs, strict=True):
        assert torch.allclose(ours, other, atol=1e-5)


def test_shapes_that_cannot_be_matched_are_one_clear_line() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.wide, self.unused = nn.Flatten(2), nn.AvgPool2d((1, 2)), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.wide(x)
            return self.tokens(x[..., :3]).transpose(1, 2).mean((1, 2))

    assert [stage.grid for stage in find(Model(), images(1), ["wide"], "here")] == [(16, 8)]
    with pytest.raises(KtError, match=r"here: the stage 'tokens' of Model gives 3 tokens, which are no grid"):
        find(Model(), images(1, 5, 3), ["tokens"], "here")
    with pytest.raises(KtError, match="here: Model never runs the module 'unused', so it gives no features"):
        find(Model(), images(1), ["unused"], "here")
    with pytest.raises(KtError, match="Model has no feature stage that can be read; name modules of it instead: "):
        find(Model(), images(1), (), "here")


# the network


def test_mix_by_hand() -> None:
    double = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        double.weight.fill_(2.0)
        double.bias.fill_(1.0)
    given = torch.arange(16.0).reshape(1, 1, 4, 4)  # means of its quarters: 2.5, 4.5, 10.5, 12.5
    stage = Stage("m", "first", 1, (2, 2), 0, None, 1.0)
    found = mix(torch.tensor([0.75, 0.25]), [double], [given], stage, torch.full((1, 1, 2, 2), 8.0))
    taken = [6 + (2 * mean + 1) / 4 for mean in (2.5, 4.5, 10.5, 12.5)]
    assert found.flatten().tolist() == taken
    tokens = Stage("m", "tokens", 1, (2, 2), 1, None, 1.0)
    found = mix(torch.tensor([0.75, 0.25]), [double], [given], tokens, torch.full((1, 5, 1), 8.0))
    assert found.flatten().tolist() == [sum(taken) / 4, *taken]


def test_candidates_are_of_nearest_depth_or_all() -> None:
    def stages(n: int) -> list[Stage]:
        return [Stage(f"m{i}", "first", 1, (1, 1), 0, None, (i + 1) / n) for i in range(n)]

    near = inlets(stages(2), [stages(4), stages(3)], every=False)
    assert [[(c.teacher, c.stage.module) for c in inlet.candidates] for inlet in near] == [
        [(0, "m1"), (1, "m0")],
        [(0, "m3"), (1, "m2")],
    ]
    assert [len(inlet.candidates) for inlet in inlets(stages(2), [stages(4), stages(3)], every=True)] == [7, 7]


@settings(max_examples=8)
@given(st.sampled_from(["resnet10t", "vit_tiny_patch16_224", "tiny_mixer", "test_mambaout"]), st.booleans())
def test_with_all_weight_on_itself_the_student_is_as_if_alone(arch: str, every: bool) -> None:
    student = build(arch, **{"resnet10t": RESNET, "vit_tiny_patch16_224": VIT}.get(arch, {}))
    flow = network(student, every=every)
    x = images(4)
    assert not torch.allclose(flow([x] * 3), student(x), atol=1e-3)
    with torch.no_grad():
        flow.scalars[:, 0] = 1e4
    assert torch.equal(flow([x] * 3), student(x))
    assert knowledge_flow.dependency_loss(flow.free()).item() == 0


def test_a_student_on_its_own_asks_no_teacher() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a teacher was asked")

    flow = network(until=0.25)
    assert flow.open
    step(flow, 8)  # a quarter of the 32 images
    assert not flow.open
    flow.teachers = (Never(), Never())
    x = images(4)
    assert torch.equal(flow([x] * 3), flow.student(x))
    assert flow.weights().tolist() == [[1, 0, 0]] * len(flow.inlets)


def test_gradients_go_where_the_paper_has_them_and_nowhere_else() -> None:
    flow = network()
    step(flow)
    flow.scalars.data[:, 0] = 0.3
    torch.autograd.backward(step(flow).mean())

    def reached(module: nn.Module) -> list[bool]:
        return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()]

    assert all(reached(flow.student))
    assert all(reached(flow.transforms))
    assert flow.scalars.grad is not None
    assert flow.scalars.grad.abs().min() > 0
    assert all(p.grad is None for teacher in flow.teachers for p in teacher.parameters())
    assert not flow.previous.requires_grad


@pytest.mark.parametrize("group", ["dependency", "stability"])
def test_each_term_reaches_its_own_parameters(group: str) -> None:
    """The dependency reaches the scalars alone, the stability all that makes the output."""
    flow = network()
    x = [images(4)] * 3
    if group == "dependency":
        torch.autograd.backward(knowledge_flow.dependency_loss(flow.free()))
        assert all(p.grad is None for part in (flow.student, flow.transforms) for p in part.parameters())
    else:
        torch.autograd.backward(knowledge_flow.stability_loss(torch.randn(4, 3), flow(x)).mean())
        assert all(p.grad is not None for part in (flow.student, flow.transforms) for p in part.parameters())
    assert flow.scalars.grad is not None


def test_once_alone_only_the_student_learns() -> None:
    flow = network(until=0.1)
    step(flow)
    torch.autograd.backward(step(flow).mean())
    assert all(p.grad is not None for p in flow.student.parameters())
    assert all(p.grad is None for p in (*flow.transforms.parameters(), flow.scalars))


def test_teachers_are_no_part_of_what_is_trained_or_kept() -> None:
    flow = network()
    kept = {name.split(".")[0] for name in flow.state_dict()}
    assert kept == {"student", "transforms", "scalars", "previous", "known", "seen", "trace", "attached"}
    flow.train()
    assert not any(module.training for teacher in flow.teachers for module in teacher.modules())


def test_equal_stages_of_two_teachers_are_not_confused() -> None:
    first, second = resnet(1), resnet(2)
    flow = network(resnet(), [first, second])
    swapped = network(resnet(), [second, first])
    x = images(4)
    assert not torch.equal(flow([x] * 3), swapped([x] * 3))
    stage = flow.inlets[0].stage
    assert flow.inlets[0] == Inlet(stage, (Candidate(0, stage), Candidate(1, stage)))


# memory


def test_memory_counts_the_teachers_and_what_flows() -> None:
    training = Training(epochs=1, batch_size=8, lr=1e-3)
    flow = network()
    state, random = {k: v.clone() for k, v in flow.state_dict().items()}, torch.get_rng_state()
    found = needs_attached(flow, [(1, 16, 16)] * 3, training, {"images": 5})
    weights = sum(t.numel() * t.element_size() for teacher in flow.teachers for t in teacher.state_dict().values())
    assert found.held["teachers"] == weights
    assert found.held["images"] == 5
    assert found.held["training"] > held(flow.student, training)
    assert found.image > activations(flow.student, images(1))
    forward = [macs(model, (1, 16, 16)) for model in (flow.student, *flow.teachers)]
    assert forward[0] + sum(forward[1:]) / 3 < found.macs < 1.5 * sum(forward)
    assert all(torch.equal(flow.state_dict()[name], tensor) for name, tensor in state.items())
    assert torch.equal(torch.get_rng_state(), random)
