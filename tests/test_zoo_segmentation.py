"""Segmentation networks in the zoo: built, checked before anything runs, loaded, and trained on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import saved, under
from torch import nn

from kt import stages, store
from kt.data.inputs import AUGMENTATIONS
from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.study.check import check
from kt.study.load import parse
from kt.tasks.segmentation import IGNORED, Segmentation
from kt.tasks.task import named
from kt.zoo import header, members, models, registry, segmentation, weights
from kt.zoo.spec import FineTune, Member, Recipe, Thin, ZooSpec
from kt.zoo.train import MOVES, batches, choose, linear, masks, train

CPU = torch.device("cpu")
SPEC = InputSpec(size=32, mean=(0.5,), std=(0.25,))
FPN = {"encoder": "test_resnet", "decoder_pyramid_channels": 8, "decoder_segmentation_channels": 32}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> registry.Registry:
    """timm's models; networks are looked at in this process."""

    def asked(what: str, wanted: Any, modules: Any) -> list[Any]:
        models.import_modules(modules)
        return {"outlines": models.outlines, "probes": models.probes}[what](wanted)

    known = registry.load()
    monkeypatch.setattr(registry, "_cached", asked)
    return known


def zoo(size: Any = 32, **member: Any) -> ZooSpec:
    values = {"arch": "smp_fpn", "args": FPN, "train": {"epochs": 1}, **member}
    given = {key: value for key, value in values.items() if value is not None}
    return ZooSpec(input=InputSpec(size=size, mean=(0.5,), std=(0.25,)), models={"a": Member.model_validate(given)})


def checked(known: registry.Registry, spec: ZooSpec, task: str = "segmentation") -> registry.Probe:
    members.check(spec, known)
    segmentation.check(spec, known, named(task))
    return segmentation.probe(spec, 5, 1, (5, None, None))["a"]


# architectures


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", "test_resnet"),
        ("fpn", "test_efficientnet"),
        ("segformer", "test_convnext"),
        ("upernet", "test_resnet"),
        ("deeplabv3plus", "test_resnet.r160_in1k"),
        ("dpt", "test_vit"),
    ],
)
def test_networks_build_on_any_encoder_of_timm_and_answer_for_each_pixel(arch, encoder):
    torch.manual_seed(0)
    model = models.build(f"smp_{arch}", {"encoder": encoder}, 5, 2).eval()
    size = 160 if encoder == "test_vit" else 32
    assert model(torch.zeros(1, 2, size, size)).shape == (1, 5, size, size)
    head = model.get_classifier()
    assert (head.out_channels, head.in_channels) == (5, model.num_features)


def test_the_registry_lists_them_and_their_properties_are_the_encoders(known):
    assert {"smp_unet", "smp_unetplusplus", "smp_segformer", "smp_dpt"} <= known.models.keys()
    member = zoo(args={**FPN, "encoder": "resnet10t", "encoder_weights": True}).models["a"]
    assert segmentation.encoder_of(member) == "resnet10t"
    assert segmentation.encoder_weights(member, known) == known.tag("resnet10t")
    assert segmentation.encoder_weights(zoo(args={**FPN, "encoder": "resnet10t"}).models["a"], known) is None
    assert segmentation.encoder_of(Member(arch="resnet10t", args={"encoder": "x"})) is None


def test_a_probe_gives_sizes_operations_and_the_answers_shape(known):
    found = checked(known, zoo(size=[32, 64]))
    model = models.build("smp_fpn", FPN, 5, 1)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert (found.answer, found.feature_width) == ((5, 32, 64), 32)
    assert found.macs == models.macs(model, (1, 32, 64))
    assert checked(known, zoo(size=[32, 64], args={**FPN, "upsampling": 1})).answer == (5, 8, 16)


# checks before anything runs


@pytest.mark.parametrize(
    ("member", "line"),
    [
        ({"arch": "smp_fnp"}, r"zoo.models.a.arch: unknown model 'smp_fnp'; .*did you mean 'smp_fpn'"),
        ({"args": {}}, r"zoo.models.a.args.encoder: a timm model is needed, .*without$"),
        ({"args": {"encoder": 34}}, r"zoo.models.a.args.encoder: a timm model is needed, .*without, not 34"),
        ({"args": {"encoder": "resnet10s"}}, r"args.encoder: unknown model 'resnet10s'; .*did you mean .*'resnet10t'"),
        ({"args": {"encoder": "smp_unet"}}, r"args.encoder: unknown model 'smp_unet'; "),
        ({"args": {"encoder": "resnet10t.a1"}}, r"args.encoder: no pretrained weights 'resnet10t.a1'; its tags: resn"),
        (
            {"args": {"encoder": "resnet10", "encoder_weights": True}},
            r"args.encoder: unknown model 'resnet10'; .*did you mean 'resnet10t'",
        ),
        (
            {"args": {"encoder": "test_resnet", "encoder_weights": "imagenet"}},
            r"args.encoder_weights: allowed: true or false, not 'imagenet'; the tag .*: test_resnet.imagenet",
        ),
        ({"args": {**FPN, "encoder_name": "x"}}, r"args.encoder_name: the encoder is given as `encoder`; leave it out"),
        ({"args": {**FPN, "classes": 3}}, r"args.classes: the data set determines the classes; leave it out"),
        ({"args": {**FPN, "activation": "softmax2d"}}, r"args.activation: answers are logits"),
        ({"args": {**FPN, "decoder_chanels": 3}}, r"smp_fpn cannot .*unknown argument 'decoder_chanels'; .*did you"),
        ({"args": {**FPN, "stem_widht": 3}}, r"zoo.models.a: smp_fpn cannot be built with .*stem_widht"),
        ({"args": {"encoder": "test_vit"}}, r"test_vit gives no maps of halving size; smp_dpt takes plain transf"),
        ({"size": 40}, r"zoo.models.a: .*\[1, 40, 40\]: .*sides must be multiples of 32, as 32 or 64 instead of 40"),
        ({"size": [32, 20]}, r"multiples of 32, as 32 instead of 20"),
        ({"arch": "test_resnet", "args": {}}, r"the model gives \[1, 5\] .*arch: smp_unet, args: {encoder: test_resn"),
        (
            {"arch": "test_resnet.r160_in1k", "args": {}, "train": None, "pretrained": True},
            r"zoo.models.a.pretrained: timm's .* classify whole images; .*{encoder: test_resnet.r160_in1k, encoder_we",
        ),
    ],
)
def test_what_does_not_fit_gives_one_line(known, member, line):
    with pytest.raises(KtError, match=line) as caught:
        checked(known, zoo(**member))
    assert "\n" not in str(caught.value)


def test_other_tasks_refuse_networks_that_answer_for_each_pixel(known):
    with pytest.raises(
        KtError, match=r"zoo.models.a.arch: 'smp_fpn' gives classes of pixels, which the task 'classification' has not"
    ):
        checked(known, zoo(), "classification")


def test_a_network_that_takes_any_size_is_not_refused(known):
    assert checked(known, zoo(size=[40, 45], arch="smp_unet", args={"encoder": "test_resnet"})).answer == (5, 40, 45)


# checkpoints


def weights_of(classes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build("smp_fpn", FPN, classes, 1).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": under("module.", tensors), "epoch": 3},
        lambda tensors: {"state_dict": under("model.", tensors), "hyper_parameters": {"arch": "Unet"}},
        lambda tensors: {"model": tensors, "optimizer": {}},
    ],
)
def test_checkpoints_are_taken_from_the_usual_wrappings_and_their_head_is_checked(known, tmp_path, wrap):
    tensors = weights_of(7)
    path = saved(wrap(tensors), tmp_path / "w.pth")
    member = zoo(train=None, checkpoint=path).models["a"]

    def check(outputs: int, given: Member = member) -> None:
        members.check_checkpoints({"zoo.models.a": (given, 1)}, (), known, outputs)

    check(7)
    with pytest.raises(KtError, match=r"^zoo.models.a.checkpoint: .*w.pth: its head has 7 outputs, but 5 are needed"):
        check(5)
    check(5, member.model_copy(update={"finetune": FineTune(mode="linear", epochs=1)}))
    with pytest.raises(KtError, match=r"w.pth: not this model's weights"):
        check(7, member.model_copy(update={"arch": "smp_unet", "args": {"encoder": "test_resnet"}}))
    build = lambda n: models.build("smp_fpn", FPN, n, 1)  # noqa: E731
    loaded = weights.given("at", build, path, 7, False).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_the_librarys_own_folder_is_taken_and_its_settings_are_compared(known, tmp_path):
    torch.manual_seed(0)
    models.build("smp_fpn", {**FPN, "upsampling": 2}, 5, 1).save_pretrained(tmp_path)
    path = str(tmp_path / "model.safetensors")
    member = zoo(train=None, checkpoint=path).models["a"]
    members.check_checkpoints({"zoo.models.a": (member, 1)}, (), known, 5)
    settings = header.read("at", tmp_path / "model.safetensors").config
    assert segmentation.differing(settings, member) == ["args.upsampling 2, here 4"]
    assert segmentation.differing(settings, member.model_copy(update={"args": {**FPN, "upsampling": 2}})) == []
    assert segmentation.differing(settings, Member(arch="test_resnet", checkpoint=path)) == []
    other = member.model_copy(update={"args": {**FPN, "encoder": "test_efficientnet"}})
    with pytest.raises(KtError, match=r"zoo.models.a.args.encoder: 'test_efficientnet', but .* are of 'test_resnet'"):
        members.check_checkpoints({"zoo.models.a": (other, 1)}, (), known, 5)


def test_weights_of_the_encoder_beside_a_checkpoint_are_refused(known, tmp_path):
    path = saved(weights_of(5), tmp_path / "w.pth")
    with pytest.raises(KtError, match=r"encoder_weights: the checkpoint has the encoder's weights too; leave it out"):
        checked(known, zoo(train=None, checkpoint=path, args={**FPN, "encoder_weights": True}))


def test_weights_of_the_encoder_are_asked_for_only_where_a_training_starts(monkeypatch):
    asked = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: asked.append(args))
    args = {**FPN, "encoder": "test_resnet.r160_in1k", "encoder_weights": True}
    models.build("smp_fpn", args, 5, 1)
    assert asked == []
    models.build("smp_fpn", args, 5, 1, pretrained=True)
    assert len(asked) == 1
    models.build("smp_fpn", {**args, "encoder_weights": False}, 5, 1, pretrained=True)
    assert len(asked) == 1


def test_weights_of_the_encoder_that_cannot_be_had_give_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tag = "test_resnet.r160_in1k"
    with pytest.raises(KtError, match=rf"^{tag}: its weights are not in .*: hf download timm/{tag}$"):
        weights.pretrained("smp_fpn", {**FPN, "encoder": tag, "encoder_weights": True}, 3, 5, tag)


# training


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "batch_size": 4, **changes})


def scenes(n: int = 16, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness tells the class of each pixel, and their masks with a frame without truth."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, (n, side // 8, side // 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = (60 * truth + generator.integers(0, 20, truth.shape)).astype(np.uint8)[..., None]
    truth[:, 0] = truth[:, :, 0] = IGNORED
    return images, truth


def test_masks_are_read_by_the_batch_at_the_inputs_size():
    class Read(np.ndarray):
        most = 0

        def __getitem__(self, some):
            found = super().__getitem__(some)
            Read.most = max(Read.most, found.shape[0])
            return np.asarray(found)

    images, truth = scenes()
    spec = InputSpec(size=64, mean=(0.5,), std=(0.25,))
    seen = batches(
        images, np.arange(16), masks(truth.view(Read), np.arange(16), recipe(), spec, CPU), "none", spec, CPU
    )
    x, y = seen(np.array([3, 1]), torch.Generator())
    assert (x.shape, y.shape, y.dtype) == ((2, 1, 64, 64), (2, 64, 64), torch.uint8)
    assert torch.equal(y, torch.from_numpy(truth[[3, 1]].repeat(2, 1).repeat(2, 2)))
    assert Read.most == 2


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_masks_move_as_their_images_do(augment):
    truth = scenes()[1]
    images = np.where(truth == IGNORED, 0, 60 + 40 * truth)[..., None].astype(np.uint8)  # black where there is no truth
    spec, rows = InputSpec(size=32, mean=(0.0,), std=(1 / 255,)), np.arange(16)
    seen = batches(images, rows, masks(truth, rows, recipe(), spec, CPU), augment, spec, CPU, spatial=True)
    x, y = seen(rows, torch.Generator().manual_seed(1))
    expected = torch.where(y == IGNORED, 0, 60 + 40 * y.float())
    if augment == "noise":
        assert torch.equal(y, torch.from_numpy(truth))
    else:
        torch.testing.assert_close(x[:, 0], expected)
    assert torch.equal(y, torch.from_numpy(truth)) == (augment not in MOVES)


def test_pixels_of_weak_classes_have_a_truth_in_few_images_and_nothing_else_changes():
    truth, rows = scenes(40)[1], np.arange(40)
    truth[:, 1, 1:3] = 1, 3  # every image has both
    plan = recipe(thin=Thin(classes=(1, 3), keep=0.25))
    found = masks(truth, rows, plan, SPEC, CPU)(rows).numpy()
    weak = np.isin(truth, (1, 3))
    assert np.array_equal(found[~weak], truth[~weak])
    assert set(np.unique(found[weak])) == {1, 3, IGNORED}
    for label in (1, 3):
        whole = [np.array_equal(f == label, t == label) for f, t in zip(found, truth, strict=True)]
        gone = [not (f == label).any() for f in found]
        assert (sum(whole), sum(gone)) == (10, 30)
    assert np.array_equal(masks(truth, rows, plan, SPEC, CPU)(rows[5:9]).numpy(), found[5:9])
    assert choose(rows, plan, 4).tolist() == rows.tolist()
    with pytest.raises(KtError, match=r"train.thin.classes: no class 3; the data set's classes are 0 to 2"):
        choose(rows, plan, 3)


def fitted(plan: Recipe, model: nn.Module | None = None) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(plan.seed)
    model = model or models.build("smp_fpn", FPN, 4, 1)
    images, truth = scenes()
    rows, losses = np.arange(16), list[float]()
    seen = batches(images, rows, masks(truth, rows, plan, SPEC, CPU), plan.augment, SPEC, CPU, spatial=True)
    run = linear if isinstance(plan, FineTune) else train
    run(model, seen, 16, Segmentation().loss, plan, CPU, lambda _, loss: losses.append(loss))
    return model, losses


def test_training_learns_pixels_and_ignores_those_without_truth():
    model, losses = fitted(recipe(epochs=30, lr=1e-2, augment="flip"))
    assert losses[-1] < 0.5 * losses[0]
    images, truth = scenes()
    with torch.no_grad():
        found = model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).argmax(1).numpy()
    assert (found == truth)[truth != IGNORED].mean() > 0.7
    again, _ = fitted(recipe(epochs=30, lr=1e-2, augment="flip"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_network_of_a_coarser_answer_is_trained_at_the_size_of_the_masks():
    torch.manual_seed(0)
    _, losses = fitted(recipe(epochs=8, lr=1e-2), models.build("smp_fpn", {**FPN, "upsampling": 1}, 4, 1))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("augment", ["none", "shift"])
def test_linear_probing_changes_the_last_convolution_alone(augment):
    torch.manual_seed(0)
    model = models.build("smp_fpn", FPN, 4, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, losses = fitted(FineTune(mode="linear", epochs=4, batch_size=4, lr=0.01, augment=augment), model)
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert losses[-1] < losses[0]


def test_the_stage_trains_a_member_on_scenes_and_writes_its_facts(known, tmp_path, monkeypatch):
    sizes = {
        "zoo": {"part": "train", "images": 12},
        "transfer": 4,
        "validation": 2,
        "test": {"part": "test", "images": 2},
    }
    train = {"epochs": 1, "batch_size": 4, "augment": "flip", "thin": {"classes": [1, 10]}}
    models = {
        "a": {"arch": "smp_fpn", "args": FPN, "train": train},
        "b": {"arch": "tiny_dilated", "train": {"epochs": 1}},
    }
    raw = {
        "results": str(tmp_path / "results"),
        "device": "cpu",
        "data": {"source": "scenes", "task": "segmentation", "splits": sizes},
        "zoo": {
            "modules": ["kt.zoo.digits"],
            "input": {"size": 64, "mean": [0.4] * 3, "std": [0.25] * 3},
            "models": models,
        },
        "transfer": {"methods": {"kl": {}}, "seeds": [0], "training": {"epochs": 1, "batch_size": 2, "lr": 1e-3}},
    }
    study = check(parse(raw, "study"))
    stages.data(study, study.layout, 1)
    stages.weights(study, study.layout, "a", 1)
    facts = store.read_json(study.layout.member("a"))
    assert (facts["arch"], facts["family"], facts["kind"], facts["train_images"]) == ("smp_fpn", "resnet", "cnn", 12)
    assert (facts["pretraining"], facts["licence"], facts["recipe"][-1]) == ("scenes", None, "thinned=1,10")
    assert facts["macs"] == segmentation.probe(study.zoo, 11, 3, (11, None, None))["a"].macs
    wrong = raw["zoo"]["models"]["a"]["train"] | {"thin": {"classes": [11]}}
    models["a"] = models["a"] | {"train": wrong}
    with pytest.raises(KtError, match=r"^zoo.models.a.train.thin.classes: no class 11; the data set has 11, "):
        stages.weights(check(parse(raw, "study")), study.layout, "a", 1)
