"""Zoo members: known by name without torch, built, trained, saved and loaded."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

from kt import store
from kt.data.spec import InputSpec
from kt.data.views import Inputs
from kt.errors import KtError
from kt.zoo import inference, models, registry
from kt.zoo.spec import Member, Recipe, Thin, ZooSpec
from kt.zoo.train import choose, train

CPU = torch.device("cpu")
SPEC = InputSpec(size=8, mean=(0.3,), std=(0.33,))


class Tiny(nn.Module):
    """A classifier with a few hundred parameters, BatchNorm and dropout."""

    num_features = 6

    def __init__(self, num_classes: int = 3, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.stem(x)).relu().mean((2, 3))))


@register_model
def kt_tests_broken(pretrained: bool = False, **kwargs: object) -> nn.Module:
    raise AssertionError


# the registry


def test_architectures_are_exactly_those_that_timm_lists():
    theirs = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert len(theirs) > 1000
    assert set(registry.architectures()) == theirs


def test_the_family_is_the_module_that_timm_names():
    for name, family in registry.architectures().items():
        assert timm.model_entrypoint(name).__module__ == f"timm.models.{family}"


def test_a_family_has_one_kind_and_a_family_that_nobody_knows_has_none():
    listed = [family for families in registry._KINDS.values() for family in families.split()]
    assert len(listed) == len(set(listed))
    kinds = {"resnet": "cnn", "vision_transformer": "transformer", "mlp_mixer": "mlp", "coat": "hybrid", "mine": None}
    assert {family: registry.kind_of(family) for family in kinds} == kinds


def test_entry_points_of_tricky_text():
    text = '''
"""A docstring that mentions @register_model
def not_me(pretrained): the decorator is not at the start of its line.
"""
from timm.models import register_model
import timm

# @register_model
def commented_out(pretrained=False): ...

@register_model
def plain(pretrained=False, **kwargs): ...

@register_model  # with a comment
@other(1, 2)
def two_decorators(pretrained=False): ...

@other
@register_model
def second_place(pretrained=False): ...

@timm.models.register_model
def dotted(pretrained: bool = False) -> nn.Module: ...

@register_models
def other_decorator(): ...

@not_register_model
def other_decorator_too(): ...

def undecorated(pretrained=False): ...

    @register_model
    def indented(pretrained=False): ...

@register_model
class NotAFunction: ...
'''
    assert registry.entry_points(text) == ["plain", "two_decorators", "second_place", "dotted"]
    assert registry.entry_points("") == []
    assert registry.entry_points("@register_model\ndef first_line(): ...") == ["first_line"]


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write a module with a name of its own and put it on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(text: str) -> str:
        written.append(f"kt_tests_user_{len(written)}")
        (tmp_path / f"{written[-1]}.py").write_text(text, "utf-8")
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_models_of_a_users_module_are_known_without_running_it(user_module):
    name = user_module("raise SystemExit\n@register_model\ndef mine(pretrained=False): ...\n")
    known = registry.architectures([name])
    assert known["mine"] == name
    assert known.keys() - {"mine"} == registry.architectures().keys()
    assert name not in sys.modules


def test_modules_that_cannot_be_used_give_one_line(user_module):
    broken = user_module("x = 1\ndef f(:\n")
    with pytest.raises(KtError, match=f"zoo.modules: {broken}: line 2: invalid syntax"):
        registry.architectures([broken])
    for name in ("kt_no_such_module", "kt.no_such_module", "sys", "math"):
        with pytest.raises(KtError, match=f"zoo.modules: {name}: no such Python module on this machine"):
            registry.architectures([name])
    for name in ("kt_no_such.module", f"{broken}.below", ".relative"):
        with pytest.raises(KtError, match=f"zoo.modules: {name}: cannot be found"):
            registry.architectures([name])
    failing = user_module("1 / 0")
    with pytest.raises(KtError, match=f"zoo.modules: {failing}: fails to import .ZeroDivisionError: division by zero"):
        models.import_modules([failing])


# building


@pytest.mark.parametrize(
    ("name", "family"), [("tiny_poolformer", "digits"), ("tiny_mixer", "digits"), ("test_efficientnet", "efficientnet")]
)
def test_models_of_the_default_study_build_through_timm(name, family):
    models.import_modules(["kt.zoo.digits"])
    assert registry.architectures(["kt.zoo.digits"])[name] == family
    assert name in timm.list_models()
    model = models.build(name, {}, classes=10, channels=1).eval()
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    colour = models.build(name, {"in_chans": 3}, classes=4, channels=1).eval()
    assert colour(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("resnet10t", {"chanels": [1]}, "zoo: resnet10t cannot be built with .*chanels"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "zoo: vit_tiny_patch16_224 cannot be built with .*divisible"),
        ("no_such_model", {}, "zoo: no_such_model cannot be built with {}: Unknown model"),
        ("kt_tests_broken", {}, "zoo: kt_tests_broken cannot be built with {}: AssertionError"),
    ],
)
def test_arguments_that_timm_refuses_give_one_line(arch, args, message):
    with pytest.raises(KtError, match=message) as caught:
        models.build(arch, args, 10, 1)
    assert "\n" not in str(caught.value)


# weights


def test_weights_survive_saving_and_loading(tmp_path):
    torch.manual_seed(0)
    model = Tiny().to(memory_format=torch.channels_last)
    model(torch.rand(4, 1, 8, 8))  # moves the running statistics
    models.save_weights(model, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    loaded = models.load_weights(Tiny(), tmp_path / "w.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    first = store.digest_file(tmp_path / "w.safetensors")
    models.save_weights(loaded, tmp_path / "again.safetensors")
    assert store.digest_file(tmp_path / "again.safetensors") == first


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 100])
def test_files_that_are_no_weights_give_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(KtError, match=r"w\.safetensors: weights cannot be read") as caught:
        models.load_weights(Tiny(), tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_truncated_weights_give_one_line(tmp_path):
    models.save_weights(Tiny(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1])
    with pytest.raises(KtError, match="weights cannot be read"):
        models.load_weights(Tiny(), tmp_path / "w.safetensors")


def test_weights_of_another_model_give_one_line_and_change_nothing(tmp_path):
    models.save_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "other.safetensors")
    models.save_weights(Tiny(num_classes=4), tmp_path / "classes.safetensors")
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        KtError, match=r"not this model's weights: missing head\.bias, .*; unexpected 0\.bias, 0\.weight"
    ):
        models.load_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(KtError, match=r"2 tensors have another shape than the model's: head\.\w+ is \[4.*\], not \[3"):
        models.load_weights(model, tmp_path / "classes.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_fingerprint_depends_on_everything_that_makes_the_member():
    base = ("arch", {"depth": 3}, SPEC.plain(), "hash")
    others = [("arch2", *base[1:]), ("arch", {}, *base[2:]), (*base[:2], {"size": 9}, "hash"), (*base[:3], "hash2")]
    assert len({models.fingerprint(*each) for each in [base, *others]}) == 5
    assert models.fingerprint(*base) == models.fingerprint(*base)


# properties


def test_macs_and_parameters_by_hand():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert models.macs(linear, 1, 8) == 640
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert models.macs(conv, 3, 8) == 8 * 8 * 5 * 3 * 9
    grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    assert models.macs(grouped, 4, 8) == 4 * 4 * 4 * 9
    tiny = Tiny().train()
    # stem 4·4·6·9 and head 6·3
    expected = {"params": 6 * 9 + 6 + 12 + 18 + 3, "macs": 864 + 18, "feature_width": 6}
    assert models.properties(tiny, 1, 8) == expected
    assert tiny.training
    assert int(tiny.norm.num_batches_tracked) == 0
    assert models.properties(linear, 1, 8)["feature_width"] == 0


# inference


def test_logits_do_not_depend_on_batches_or_mode_and_leave_the_mode(monkeypatch):
    torch.manual_seed(0)
    model, images = Tiny(), np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    inputs = Inputs(images, np.arange(7), SPEC, CPU)
    expected = model.eval()(inputs[slice(None)]).detach().numpy()
    for training, batch in [(True, 256), (False, 256), (True, 3), (True, 1)]:
        monkeypatch.setattr(inference, "BATCH", batch)
        model.train(training)
        found = inference.logits(model, inputs)
        assert (found.dtype, found.shape) == (np.float16, (7, 3))
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert model.training == training


# training


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"epochs": 3, "batch_size": 4, "seed": 5, **changes})


def test_choose_takes_all_images_unless_told_otherwise():
    assert choose(np.zeros(9, np.int64), recipe()).tolist() == [*range(9)]
    chosen = choose(np.zeros(100, np.int64), recipe(images=30))
    assert len(set(chosen)) == 30
    assert chosen.tolist() == sorted(chosen)
    assert chosen.tolist() == choose(np.zeros(100, np.int64), recipe(images=30)).tolist()
    assert chosen.tolist() != choose(np.zeros(100, np.int64), recipe(images=30, seed=6)).tolist()


def test_thinning_by_hand():
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    thinned = choose(labels, recipe(thin=Thin(classes=(1,), keep=0.5)))
    assert thinned.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 11]  # the first two of class 1 stay
    none = choose(labels, recipe(thin=Thin(classes=(0, 2), keep=0.0)))
    assert labels[none].tolist() == [1, 1, 1, 1]


def test_thinning_keeps_the_share_of_what_was_drawn():
    labels = np.random.default_rng(0).integers(0, 3, 300)
    drawn = choose(labels, recipe(images=200))
    thinned = choose(labels, recipe(images=200, thin=Thin(classes=(1, 2), keep=0.25)))
    assert set(thinned) <= set(drawn)
    for c, share in ((0, 1), (1, 0.25), (2, 0.25)):
        assert (labels[thinned] == c).sum() == round((labels[drawn] == c).sum() * share)


def test_choose_refuses_more_images_than_there_are_and_less_than_a_batch():
    with pytest.raises(KtError, match=r"train\.images: 10 asked for, but the zoo split has 9"):
        choose(np.zeros(9, np.int64), recipe(images=10))
    with pytest.raises(KtError, match=r"train: 2 images are left, fewer than one batch of 4"):
        choose(np.array([0, 0, 1, 1, 1]), recipe(thin=Thin(classes=(1,), keep=0.0)))


def data(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness tells their class."""
    labels = np.arange(n) % 3
    noise = np.random.default_rng(0).integers(0, 60, (n, 8, 8, 1))
    return (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels


def trained(plan: Recipe) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]], nn.Module]:
    torch.manual_seed(plan.seed)
    reports: list[tuple[int, float]] = []
    model = train(Tiny(), *data(), plan, SPEC, CPU, lambda epoch, loss: reports.append((epoch, loss)))
    return model.state_dict(), reports, model


@pytest.mark.parametrize("augment", ["none", "shift", "noise", "erase"])
def test_training_twice_gives_bit_identical_weights_and_another_seed_does_not(augment):
    (first, reports, model), (second, again, _) = trained(recipe(augment=augment)), trained(recipe(augment=augment))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert reports == again
    assert [epoch for epoch, _ in reports] == [1, 2, 3]
    assert not model.training
    other, _, _ = trained(recipe(augment=augment, seed=6))
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_learns():
    _, reports, model = trained(recipe(epochs=40, lr=0.02))
    images, labels = data()
    found = inference.logits(model, Inputs(images, np.arange(30), SPEC, CPU)).argmax(1)
    assert (found == labels).mean() > 0.9
    assert reports[-1][1] < reports[0][1] / 2


def test_a_training_that_diverges_says_so():
    with pytest.raises(KtError, match=r"training diverged in epoch \d+: the loss is not finite; lower train.lr"):
        trained(recipe(lr=1e38))


# the configuration of a member


def test_a_members_own_input_goes_before_the_zoos():
    own = InputSpec(size=4, mean=(0.0,), std=(1.0,))
    spec = ZooSpec(input=SPEC, models={"a": Member(arch="x"), "b": Member(arch="x", input=own)})
    assert (spec.input_of("a"), spec.input_of("b")) == (SPEC, own)


def test_the_tags_of_a_recipe_say_how_it_trains():
    plan = recipe(augment="shift", thin=Thin(classes=(3, 4)))
    assert plan.tags() == ["supervised", "augment=shift", "epochs=3", "thinned=3,4"]
    assert recipe().tags() == ["supervised", "augment=none", "epochs=3"]


def test_a_class_that_is_not_there_cannot_be_thinned():
    recipe = Recipe(epochs=1, batch_size=2, thin=Thin(classes=(1, 7)))
    with pytest.raises(KtError, match=r"train.thin.classes: no class 7 in the zoo split; its classes end at 1"):
        choose(np.array([0, 1, 0, 1]), recipe)
