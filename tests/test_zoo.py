"""Zoo members: known by name without torch, built, trained, saved and loaded."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from answers import logits
from timm.models import register_model
from tiny import Tiny
from torch import nn

from kt import store
from kt.checkpoint import Checkpoint
from kt.data.inputs import Inputs
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.tasks.classification import Classification
from kt.zoo import inference, models, weights
from kt.zoo.spec import FineTune, Recipe, Thin, fingerprint
from kt.zoo.train import batches, choose, in_memory, linear, train

CPU = torch.device("cpu")
ENTROPY = Classification().supervised
SPEC = InputSpec(size=8, mean=(0.3,), std=(0.33,))


@register_model
def kt_tests_broken(pretrained: bool = False, **kwargs: object) -> nn.Module:
    raise AssertionError


# building


@pytest.mark.parametrize("name", ["tiny_poolformer", "tiny_mixer", "test_efficientnet"])
def test_models_of_the_default_study_build_through_timm(name):
    models.import_modules(["kt.zoo.digits"])
    assert name in timm.list_models()
    model = models.build(name, {}, outputs=10, channels=1).eval()
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    colour = models.build(name, {"in_chans": 3}, outputs=4, channels=1).eval()
    assert colour(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


def test_the_small_network_for_scenes_answers_at_half_the_size():
    models.import_modules(["kt.zoo.digits"])
    model = models.build("tiny_dilated", {"width": 8, "dilations": [1, 2]}, outputs=11, channels=3)
    assert model(torch.zeros(2, 3, 20, 31)).shape == (2, 11, 10, 16)
    assert model.get_classifier() is model.head


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("resnet10t", {"chanels": [1]}, "zoo: resnet10t cannot be built with .*args: .*chanels.*mean 'channels'"),
        ("resnet10t", {"stem_width": -1, "channels": [8] * 4}, r"cannot be built with .*: args\.stem_width: "),
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
    weights.save(model, tmp_path / "w.safetensors")
    torch.manual_seed(1)
    loaded = weights.load(Tiny(), tmp_path / "w.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    first = store.digest_file(tmp_path / "w.safetensors")
    weights.save(loaded, tmp_path / "again.safetensors")
    assert store.digest_file(tmp_path / "again.safetensors") == first
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == usual.stat().st_mode  # others may read them, too


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "': no such file"),
        (b"", r"' is not weights \(the file is empty\)"),
        (b"not safetensors", r"' is not weights \(.*header"),
        (b"\xff" * 100, r"' is not weights \(.*header"),
    ],
)
def test_files_that_are_no_weights_give_one_line(tmp_path, content, line):
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(KtError, match=rf"w\.safetensors{line}") as caught:
        weights.load(Tiny(), tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_truncated_weights_give_one_line(tmp_path):
    weights.save(Tiny(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1])
    with pytest.raises(KtError, match=r"is not weights \("):
        weights.load(Tiny(), tmp_path / "w.safetensors")


def test_weights_of_another_model_give_one_line_and_change_nothing(tmp_path):
    weights.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "other.safetensors")
    weights.save(Tiny(num_classes=4), tmp_path / "classes.safetensors")
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        KtError, match=r"not this model's weights: missing head\.bias, .*; unexpected 0\.bias, 0\.weight"
    ):
        weights.load(model, tmp_path / "other.safetensors")
    with pytest.raises(KtError, match=r"2 tensors have another shape than the model's: head\.\w+ is \[4.*\], not \[3"):
        weights.load(model, tmp_path / "classes.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_fingerprint_depends_on_everything_that_makes_the_member():
    base = ("arch", {"depth": 3}, SPEC.plain(), "hash")
    others = [("arch2", *base[1:]), ("arch", {}, *base[2:]), (*base[:2], {"size": 9}, "hash"), (*base[:3], "hash2")]
    assert len({fingerprint(*each) for each in [base, *others]}) == 5
    assert fingerprint(*base) == fingerprint(*base)


# published weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache, as a download leaves it, with fresh weights in the place of timm's; there is no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def publish(tag: str) -> nn.Module:
        model = timm.create_model(tag)
        repository = tmp_path / "hub" / f"models--timm--{tag}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        weights.save(model, repository / "snapshots" / ("0" * 40) / "model.safetensors")
        return model

    return publish


def test_published_weights_come_from_the_hub_or_its_cache(hub):
    tag = "test_resnet.r160_in1k"
    published = hub(tag)
    loaded = weights.pretrained(tag, {}, 3, 1000)
    assert all(torch.equal(t, published.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_published_weights_that_cannot_be_had_give_one_line(hub):
    with pytest.raises(KtError) as caught:
        weights.pretrained("test_vit.r160_in1k", {}, 3, 1000)
    text = str(caught.value)
    assert text.startswith("test_vit.r160_in1k: its weights are not in ")
    assert text.endswith("where there is a network: hf download timm/test_vit.r160_in1k")
    assert "\n" not in text


# properties


def test_macs_and_parameters_by_hand():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert models.macs(linear, (1, 8, 8)) == 640
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert models.macs(conv, (3, 8, 8)) == 8 * 8 * 5 * 3 * 9
    grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    assert models.macs(grouped, (4, 8, 8)) == 4 * 4 * 4 * 9
    tiny = Tiny().train()
    # stem 4·4·6·9 and head 6·3
    assert models.macs(tiny, (1, 8, 8)) == 864 + 18
    assert models.macs(Tiny().to("meta"), (1, 8, 8)) == 864 + 18
    assert models.sizes(tiny) == {"params": 6 * 9 + 6 + 12 + 18 + 3, "feature_width": 6}
    assert tiny.training
    assert int(tiny.norm.num_batches_tracked) == 0
    assert models.sizes(linear)["feature_width"] == 0


def test_an_image_that_the_model_does_not_take_gives_one_line():
    with pytest.raises(KtError, match=r"the model does not take an image of \[3, 8, 8\]: RuntimeError: .*channels"):
        models.macs(Tiny(), (3, 8, 8))
    vit = models.build("vit_tiny_patch16_224", {"depth": 1}, 3, 3)
    with pytest.raises(KtError, match=r"does not take an image of \[3, 64, 64\]: AssertionError: Input height"):
        models.macs(vit, (3, 64, 64))


# inference


def test_logits_do_not_depend_on_batches_or_mode_and_leave_the_mode(monkeypatch):
    torch.manual_seed(0)
    model, images = Tiny(), np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    inputs = Inputs(images, np.arange(7), SPEC, CPU)
    expected = model.eval()(inputs[slice(None)]).detach().numpy()
    for training, batch in [(True, 256), (False, 256), (True, 3), (True, 1)]:
        monkeypatch.setattr(inference, "EVALUATED", batch)
        model.train(training)
        found = logits(model, inputs)
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
    images, labels = data()
    seen = batches(images, np.arange(len(labels)), in_memory(labels, CPU), plan.augment, SPEC, CPU)
    model = train(Tiny(), seen, len(labels), ENTROPY, plan, CPU, lambda epoch, loss: reports.append((epoch, loss)))
    return model.state_dict(), reports, model


class Killed(Exception):
    """Stands for a process that ends."""


@pytest.mark.parametrize("augment", ["none", "noise"])
@pytest.mark.parametrize("stop", [1, 7, 8, 20])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(tmp_path, augment, stop):
    plan = recipe(augment=augment)
    images, labels = data()
    whole, _, _ = trained(plan)
    seen = batches(images, np.arange(len(labels)), in_memory(labels, CPU), augment, SPEC, CPU)
    calls = 0

    def dying(positions, generator):
        nonlocal calls
        calls += 1
        if calls == stop + 1:
            raise Killed
        return seen(positions, generator)

    checkpoint = Checkpoint(tmp_path / "c.pt", "key", every=0)
    torch.manual_seed(plan.seed)
    with pytest.raises(Killed):
        train(Tiny(), dying, len(labels), ENTROPY, plan, CPU, lambda *_: None, checkpoint)
    torch.manual_seed(99)  # the process that goes on drew other numbers before
    epochs: list[int] = []
    model = train(Tiny(), seen, len(labels), ENTROPY, plan, CPU, lambda epoch, _: epochs.append(epoch), checkpoint)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
    assert epochs == [*range(1 + stop // 7 if stop % 7 else stop // 7, 4)]


@pytest.mark.parametrize("augment", ["none", "shift", "noise", "erase", "flip"])
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
    found = logits(model, Inputs(images, np.arange(30), SPEC, CPU)).argmax(1)
    assert (found == labels).mean() > 0.9
    assert reports[-1][1] < reports[0][1] / 2


def probe(augment: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A probed model, and its weights before."""
    torch.manual_seed(0)
    model = models.build("test_resnet", {}, 3, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = data()
    plan = FineTune(mode="linear", epochs=30, batch_size=10, lr=0.05, augment=augment)
    spec = InputSpec(size=32, mean=(0.3,), std=(0.33,))
    seen = batches(images, np.arange(30), in_memory(labels, CPU), augment, spec, CPU)
    linear(model, seen, 30, ENTROPY, plan, CPU, lambda *_: None)
    return model, before


@pytest.mark.parametrize("augment", ["none", "shift"])
def test_linear_probing_learns_and_changes_nothing_but_the_classifier(augment):
    model, before = probe(augment)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    images, labels = data()
    spec = InputSpec(size=32, mean=(0.3,), std=(0.33,))
    assert (logits(model, Inputs(images, np.arange(30), spec, CPU)).argmax(1) == labels).mean() > 0.8


def test_probing_on_kept_features_is_probing_the_whole_model(monkeypatch):
    kept, _ = probe("none")
    monkeypatch.setattr("kt.zoo.train._is_last", lambda *_: False)
    whole, _ = probe("none")
    torch.testing.assert_close(kept.fc.weight, whole.fc.weight, rtol=1e-3, atol=1e-4)


def test_a_model_without_a_named_classifier_cannot_be_probed():
    images, labels = data()
    seen = batches(images, np.arange(30), in_memory(labels, CPU), "none", SPEC, CPU)
    with pytest.raises(KtError, match=r"Tiny has no get_classifier\(\) with weights"):
        linear(Tiny(), seen, 30, ENTROPY, FineTune(mode="linear", epochs=1), CPU, lambda *_: None)
    with pytest.raises(KtError, match=r"Tiny has no method reset_classifier"):
        weights.with_new_head(Tiny(), 4)


def test_a_training_that_diverges_says_so():
    with pytest.raises(KtError, match=r"training diverged in epoch \d+: the loss is not finite; lower train.lr"):
        trained(recipe(lr=1e38))


def test_the_tags_of_a_recipe_say_how_it_trains():
    plan = recipe(augment="shift", thin=Thin(classes=(3, 4)))
    assert plan.tags() == ["supervised", "augment=shift", "epochs=3", "thinned=3,4"]
    assert recipe().tags() == ["supervised", "augment=none", "epochs=3"]


def test_classes_to_thin_out_are_given_by_number_or_name():
    plan = recipe(thin=Thin(classes=("cat", 0)))
    numbered = plan.numbered("zoo.models.a.train", ["ant", "bee", "cat"])
    assert numbered.thin
    assert numbered.thin.classes == (2, 0)
    assert plan.tags()[-1] == "thinned=cat,0"
    with pytest.raises(KtError, match=r"^a\.train\.thin\.classes: unknown class 'cat'; .*did you mean 'cats'"):
        plan.numbered("a.train", ["ant", "bee", "cats"])
    with pytest.raises(KtError, match=r"thin\.classes: no class 0; the data set has 0"):
        recipe(thin=Thin(classes=(0,))).numbered("a.train", [])
    with pytest.raises(KtError, match="is given twice"):
        recipe(thin=Thin(classes=("ant", 0))).numbered("a.train", ["ant"])


def test_a_class_that_is_not_there_cannot_be_thinned():
    recipe = Recipe(epochs=1, batch_size=2, thin=Thin(classes=(1, 7)))
    with pytest.raises(KtError, match=r"train.thin.classes: no class 7 in the zoo split; its classes end at 1"):
        choose(np.array([0, 1, 0, 1]), recipe)
