"""The zoo by name, glob and filter, what is known of its models, and what is refused before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest
import timm
import torch

from kt.data.seen import InputSpec
from kt.errors import KtError
from kt.zoo import knowledge, members, preview, registry
from kt.zoo.knowledge import read_overrides, read_published
from kt.zoo.registry import Pretrained, Registry, Size
from kt.zoo.spec import FineTune, Member, Recipe, Select, ZooSpec

INPUT = InputSpec(size=8, mean=(0.3,), std=(0.33,))
TRAIN = Recipe(epochs=1)


@pytest.fixture(scope="module")
def known() -> Registry:
    return registry.load()


def sizes(tags):
    return registry.sizes(tags)


def expand(known: Registry, **zoo: object) -> ZooSpec:
    return members.expand(ZooSpec.model_validate(zoo), known, sizes)


# the registry


def test_the_registry_is_what_timm_lists_with_the_networks_for_segmentation(known):
    theirs = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert len(theirs) > 1000
    ours = {name for name, family in known.models.items() if family == "segmentation"}
    assert set(known.models) - ours == theirs
    assert all(name.startswith("smp_") for name in ours)
    for name in theirs:
        assert timm.model_entrypoint(name).__module__ == f"timm.models.{known.models[name]}"
    assert {tag for tag in timm.list_pretrained() if tag.split(".")[0] in theirs} == set(known.tags)
    for tag, ours in known.tags.items():
        cfg = timm.models.get_pretrained_cfg(tag)
        assert (ours.input_size, ours.mean, ours.num_classes) == (cfg.input_size, cfg.mean, cfg.num_classes)
        assert (ours.crop_pct, ours.crop_mode, ours.interpolation) == (cfg.crop_pct, cfg.crop_mode, cfg.interpolation)


def test_a_name_without_a_tag_means_timms_default(known):
    for arch in ("resnet50", "vit_tiny_patch16_224", "test_resnet"):
        assert known.tag(arch) == f"{arch}.{timm.models.get_pretrained_cfg(arch).tag}"
    assert known.tag("resnet50.a2_in1k") == "resnet50.a2_in1k"
    assert known.tag("nf_regnet_b0") is None


def test_the_second_reading_asks_timm_nothing(known, monkeypatch):
    registry._read.cache_clear()
    monkeypatch.setattr(registry, "_ask", None)
    assert registry.load() == known
    registry._read.cache_clear()


def test_reading_the_registry_imports_neither_torch_nor_timm(python):
    ended = python(
        "import sys; from kt.zoo import members, preview, registry; registry.load();"
        "print([name for name in ('torch', 'timm') if name in sys.modules])"
    )
    assert ended.stdout == "[]\n", ended.stderr


def test_sizes_are_those_of_the_models(known):
    for tag in ("test_resnet.r160_in1k", "test_vit.r160_in1k"):
        model, (channels, height, width) = timm.create_model(tag), known.tags[tag].input_size
        from kt.zoo import models

        ours = sizes([tag])[tag]
        assert ours is not None
        assert {"params": ours.params, "feature_width": ours.feature_width} == models.sizes(model)
        assert ours.macs == models.macs(model, (channels, height, width))
        assert ours.params == sum(p.numel() for p in model.parameters())
        assert model.forward_head(model.forward_features(torch.zeros(1, 3, height, width)), pre_logits=True).shape == (
            1,
            ours.feature_width,
        )


def test_a_table_of_sizes_is_read_for_the_timm_that_made_it_alone(tmp_path, monkeypatch):
    from kt.zoo import models

    tag = "test_vit.r160_in1k"
    made = {tag: {"params": 1, "macs": None, "feature_width": 3}, "unknown.x": None}
    monkeypatch.setattr(registry, "TABLE", tmp_path / "sizes.csv")
    registry._table.cache_clear()
    assert registry._table() == {}
    (tmp_path / "sizes.csv").write_text(models.table(made), "utf-8")
    registry._table.cache_clear()
    assert sizes([tag]) == {tag: Size(1, None, 3)}
    (tmp_path / "sizes.csv").write_text(models.table(made).replace(timm.__version__, "0.1"), "utf-8")
    registry._table.cache_clear()
    assert registry._table() == {}
    registry._table.cache_clear()


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write a module with a name of its own and put it on the path; its listings go into a cache of their own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = []

    def write(text: str) -> str:
        written.append(f"kt_tests_user_{len(written)}")
        (tmp_path / f"{written[-1]}.py").write_text(text, "utf-8")
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


MODULE = """
from timm.models import generate_default_cfgs, register_model
print("modules may print")
default_cfgs = generate_default_cfgs({"mine.small_in1k": {"file": "mine.pth", "input_size": (3, 32, 32)}})

def decorated(**_):
    return lambda function: function

@decorated(
    over="several",
    lines=True,
)
@register_model
def mine(pretrained=False, **kwargs): ...

for name in ("made_a", "made_b"):
    register_model(type(mine)(mine.__code__, globals(), name))
"""


def test_models_and_tags_of_a_users_module_are_known_however_they_are_registered(user_module, known):
    name = user_module(MODULE)
    found = registry.load([name])
    assert found.models.keys() - known.models.keys() == {"mine", "made_a", "made_b"}
    assert found.models["mine"] == name
    assert found.tags["mine.small_in1k"].input_size == (3, 32, 32)
    assert name not in sys.modules


def test_modules_that_cannot_be_used_give_one_line(user_module):
    broken, failing, leaving = user_module("x = 1\ndef f(:\n"), user_module("1 / 0"), user_module("raise SystemExit(0)")
    lines = {
        broken: "fails to import .SyntaxError: invalid syntax",
        failing: "fails to import .ZeroDivisionError: division by zero",
        leaving: "fails to import .SystemExit: 0",
    }
    for name, line in lines.items():
        with pytest.raises(KtError, match=f"^zoo.modules: {name}: {line}") as caught:
            registry.load([name])
        assert "\n" not in str(caught.value)
    for name in ("kt_no_such_module", "kt.no_such_module", "sys"):
        with pytest.raises(KtError, match=f"zoo.modules: {name}: no such Python module on this machine"):
            registry.load([name])
    for name in ("kt_no_such.module", ".relative"):
        with pytest.raises(KtError, match=f"zoo.modules: {name}: cannot be found"):
            registry.load([name])


# what names say


@pytest.mark.parametrize(
    ("name", "pretraining", "finetuning", "recipe"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "in21k", "in1k", "supervised augment=augreg finetuned"),
        ("resnet50.a1_in1k", "in1k", None, "supervised recipe=rsb-a1"),
        ("tf_efficientnet_b0.ns_jft_in1k", "jft+in1k", None, "semi-supervised"),
        ("tf_efficientnet_b0.ap_in1k", "in1k", None, "supervised adversarial"),
        ("convnextv2_base.fcmae_ft_in22k_in1k", None, "in22k+in1k", "self-supervised finetuned"),
        ("beit_base_patch16_224.in22k_ft_in22k_in1k", "in22k", "in22k+in1k", "self-supervised finetuned"),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "laion2b", "in12k+in1k", "language-supervised finetuned"),
        ("vit_base_patch16_clip_224.openai", None, None, "language-supervised"),
        ("regnety_160.swag_lc_in1k", None, "in1k", "weakly-supervised finetuned"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", "in1k", None, "distilled"),
        ("naflexvit_base_patch16_radio_v3.c_radio", None, None, ""),
        ("mine", None, None, ""),
    ],
)
def test_what_a_tag_says_of_the_training(name, pretraining, finetuning, recipe):
    assert knowledge.training(name) == knowledge.Training(pretraining, finetuning, tuple(recipe.split()))


def test_every_family_has_one_kind_but_where_nobody_knows_it(known):
    families = {
        family: {knowledge.kind_of(a, f) for a, f in known.models.items() if f == family}
        for family in known.models.values()
    }
    mixed = {family: kinds for family, kinds in families.items() if len(kinds) > 1}
    assert mixed == {"metaformer": {"cnn", "hybrid"}, "mobilenetv3": {"cnn", "hybrid"}, "byobnet": {"cnn", "hybrid"}}
    unknown = [family for family, kinds in families.items() if None in kinds]
    assert sorted(unknown) == ["segmentation", "sequencer"]  # networks for segmentation have the kind of their encoder
    assert knowledge.kind_of("mine", "my_module") is None


def test_kinds_and_years_of_well_known_architectures(known):
    facts = {
        "resnet50": ("cnn", 2015),
        "vit_base_patch16_224": ("transformer", 2020),
        "mixer_b16_224": ("mlp", 2021),
        "mobilenetv4_hybrid_medium": ("hybrid", 2024),
        "convnextv2_tiny": ("cnn", 2023),
        "swin_tiny_patch4_window7_224": ("transformer", 2021),
        "sequencer2d_s": (None, 2022),
        "resnet26t": ("cnn", None),
    }
    for arch, expected in facts.items():
        family = known.models[arch]
        assert (knowledge.kind_of(arch, family), knowledge.year_of(arch, family)) == expected, arch


# selection


def test_selected_models_are_named_by_their_tag_and_bring_their_own_input(known):
    zoo = expand(known, select=({"match": ("vit_tiny_patch16_224.*", "inception_v3.tf_in1k")},))
    assert list(zoo.models) == [
        "inception_v3.tf_in1k",
        "vit_tiny_patch16_224.augreg_in21k",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    ]
    vit, inception = zoo.input_of("vit_tiny_patch16_224.augreg_in21k"), zoo.input_of("inception_v3.tf_in1k")
    assert (vit.size, vit.mean, vit.crop_pct, vit.interpolation) == (224, (0.5, 0.5, 0.5), 0.9, "bicubic")
    assert (inception.size, inception.crop_pct) == (299, 0.875)
    assert all(member.pretrained for member in zoo.models.values())


def test_every_filter_keeps_what_it_says(known):
    def passing(**filters: object) -> list[str]:
        return members.select_tags(Select.model_validate(filters), known, sizes, "zoo.select.0")

    every = passing(match="*")
    assert len(every) > 1500
    assert all(known.tags[tag].num_classes > 0 for tag in every)
    assert len(passing(match="*", finetune={"mode": "linear", "epochs": 1})) > len(every)
    cases = [
        ({"input_size": 384}, lambda tag: known.tags[tag].input_size[1] == 384),
        ({"max_input_size": 224}, lambda tag: known.tags[tag].input_size[1] <= 224),
        ({"classes": (1000, 21843)}, lambda tag: known.tags[tag].num_classes in (1000, 21843)),
        ({"family": "resnet"}, lambda tag: known.models[known.tags[tag].arch] == "resnet"),
        ({"kind": "mlp"}, lambda tag: known.models[known.tags[tag].arch] == "mlp_mixer"),
        ({"licence": ("mit", "apache-2.0")}, lambda tag: known.tags[tag].license in ("mit", "apache-2.0")),
        ({"pretrain": "in21k"}, lambda tag: (knowledge.training(tag).pretraining or "").startswith("in21k")),
        ({"exclude": "vit_*"}, lambda tag: not tag.startswith("vit_")),
    ]
    for filters, holds in cases:
        assert passing(**filters) == [tag for tag in every if holds(tag)], filters


def test_filters_by_size_keep_models_between_their_bounds(known):
    def size(tags):
        return {tag: Size(len(tag), 10 * len(tag), 1) if "_in1k" in tag else None for tag in tags}

    select = Select(match=("test_*",), min_params=20, max_params=22, max_macs=215)
    found = members.select_tags(select, known, size, "zoo.select.0")
    assert found == sorted(tag for tag in known.tags if tag.startswith("test_") and 20 <= len(tag) <= 21)


def test_sizes_may_be_written_with_an_exponent():
    assert Select.model_validate({"max_params": 100e6}).max_params == 100_000_000
    with pytest.raises(ValueError, match="integer"):
        Select.model_validate({"max_params": 1.5})


def test_members_by_name_and_by_filter_live_side_by_side(known):
    tag = "test_resnet.r160_in1k"
    mine = Member(arch="test_resnet", pretrained=True, licence="MIT")
    own = Member(arch="test_vit", train=TRAIN)
    zoo = expand(known, input=INPUT, models={tag: mine, "own": own}, select=({"match": ("test_*",)},))
    assert zoo.models[tag].licence == "MIT"
    assert zoo.models[tag].arch == tag
    assert zoo.input_of("own") == INPUT
    assert zoo.input_of(tag).size == 160
    assert len(zoo.models) == 14
    assert expand(known, select=({"match": ("test_*",)}, {"match": ("test_vit*",)})).models.keys() < zoo.models.keys()


@pytest.mark.parametrize(
    ("zoo", "line"),
    [
        ({"select": [{"match": "vitt_*"}]}, r"zoo.select.0.match: 'vitt_\*' matches none of 1826 pretrained tags"),
        ({"select": [{"match": "vit_*", "exclude": "*"}]}, r"zoo.select.0.exclude: none of the \d+ models before this"),
        ({"select": [{"exclude": "x_*"}]}, r"zoo.select.0.exclude: 'x_\*' matches none of"),
        ({"select": [{"match": "vit_*", "input_size": 31}]}, r"zoo.select.0.input_size: none of the \d+ models before"),
        ({"select": [{"match": "test_vit.*"}]}, "zoo: at least 2 models needed, not 1"),
        ({"models": {}}, "zoo: at least 2 models needed, not 0"),
        ({"models": {"a": {"arch": "resnet10", "pretrained": True}}}, "zoo.models.a.arch: no pretrained .*'resnet10t"),
        ({"models": {"a": {"arch": "resnet50.a9_in1k", "pretrained": True}}}, "no pretrained weights .*; its tags: "),
        ({"models": {"a": {"arch": "nf_regnet_b0", "pretrained": True}}}, "timm publishes no weights for it; give"),
        ({"models": {"a": {"arch": "resnet18", "train": {"epochs": 1}}}}, "zoo.models.a.input: this key is missing"),
        (
            {
                "models": {"test_vit.r160_in1k": {"arch": "test_resnet", "pretrained": True}},
                "select": [{"match": "test_*"}],
            },
            "zoo.select.0: selects 'test_vit.r160_in1k', but zoo.models has another model of this name",
        ),
        (
            {"select": [{"match": "test_*"}, {"match": "test_vit.*", "finetune": {"mode": "full", "epochs": 1}}]},
            "zoo.select.1: 'test_vit.r160_in1k' is selected twice, with different settings",
        ),
    ],
)
def test_a_zoo_that_cannot_be_is_refused_with_one_line(known, zoo, line):
    from kt.data.strict_yaml import plain

    with pytest.raises(KtError, match=line) as caught:
        expand(known, **plain(zoo))
    assert "\n" not in str(caught.value)


# checks


def checked(known: Registry, **member: object) -> None:
    zoo = ZooSpec(input=INPUT, models={"a": Member.model_validate({"arch": "test_resnet", **member})})
    members.check(zoo, known)


@pytest.mark.parametrize(
    ("member", "line"),
    [
        ({"arch": "resnet10", "train": TRAIN}, "zoo.models.a.arch: unknown model 'resnet10'; allowed: .*'resnet10t'"),
        ({}, "zoo.models.a: give one of `train`, `checkpoint` and `pretrained`, one is needed"),
        ({"train": TRAIN, "pretrained": True}, "zoo.models.a: give one of .*, not train and pretrained"),
        ({"train": TRAIN, "finetune": FineTune(mode="full", epochs=1)}, "zoo.models.a.finetune: fits given weights"),
        ({"train": TRAIN, "input": INPUT.model_copy(update={"std": (1.0, 1.0)})}, "need the same number of channels"),
    ],
)
def test_a_member_that_cannot_be_is_refused_with_one_line(known, member, line):
    with pytest.raises(KtError, match=line) as caught:
        checked(known, **member)
    assert "\n" not in str(caught.value)


def test_heads_of_another_class_count_are_named_with_what_helps(known):
    zoo = expand(known, select=({"match": ("test_vit.*", "test_resnet.*")},))
    members.check_heads(zoo, known, 1000)
    with pytest.raises(
        KtError, match=r"test_resnet.r160_in1k: its head has 1000 outputs, but 10 are needed .and 1 models more"
    ):
        members.check_heads(zoo, known, 10)
    tuned = {"match": ("test_vit.*", "test_resnet.*"), "finetune": FineTune(mode="linear", epochs=1)}
    members.check_heads(expand(known, select=(tuned,)), known, 10)


# overrides


def test_overrides_correct_and_add_columns(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("name,year,recipe,robust,price,gpu,note\na,2020,x y,true,1.5,3,good\nb,,,false,,4,\n", "utf-8")
    rows, extra = read_overrides(str(path), ["a", "b", "c"])
    assert rows == {
        "a": {"year": 2020, "recipe": ["x", "y"], "robust": True, "price": 1.5, "gpu": 3, "note": "good"},
        "b": {"robust": False, "gpu": 4},
    }
    assert extra == {"robust": pa.bool_(), "price": pa.float64(), "gpu": pa.int64(), "note": pa.string()}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model,year\na,2020\n", "needs a column 'name'"),
        ("", "needs a column 'name'"),
        ("name,acc\na,99\n", "column 'acc' is measured and cannot be corrected; allowed: family, kind"),
        ("name,my column\na,99\n", "'my column' cannot name a column"),
        ("name,year\na,20,20\n", "None cannot name a column"),
        ("name,year\nz,2020\n", "unknown model 'z'; allowed: a, b"),
        ("name,year\na,soon\n", "column 'year' needs a whole number, not 'soon'"),
        ("name,kind\na,cnnn\n", "unknown kind 'cnnn'; .*did you mean 'cnn'"),
    ],
)
def test_overrides_that_cannot_be_are_refused_with_one_line(tmp_path, text, line):
    path = tmp_path / "own.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(KtError, match=f"^zoo.overrides: {path}: .*{line}") as caught:
        read_overrides(str(path), ["a", "b"])
    assert "\n" not in str(caught.value)
    with pytest.raises(KtError, match="cannot be read"):
        read_overrides(str(tmp_path / "none.csv"), ["a"])


def test_published_accuracies_are_read_as_timm_writes_them(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("model,top1,top5\nresnet50.a1_in1k,80.22,94.6\nresnet18.a1_in1k,71.5,90.1\n", "utf-8")
    assert read_published(str(path)) == {"resnet50.a1_in1k": 80.22, "resnet18.a1_in1k": 71.5}
    plain, tuned = Member(arch="a.x", pretrained=True), FineTune(mode="linear", epochs=1)
    assert plain.published({"a.x": 80.0}) == 80.0
    assert plain.model_copy(update={"published_acc": 70.0}).published({"a.x": 80.0}) == 70.0
    assert plain.model_copy(update={"finetune": tuned}).published({"a.x": 80.0}) is None
    for text, line in [("name,acc\na,1\n", "needs the columns"), ("model,top1\na,high\n", "top1 of 'a' needs percent")]:
        path.write_text(text, "utf-8")
        with pytest.raises(KtError, match=f"^zoo.published: {path}: {line}"):
            read_published(str(path))


# the preview


def test_the_preview_counts_passes_bytes_and_seconds_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--timm--here.x" / "snapshots" / "0" / "model.safetensors").mkdir(parents=True)
    tag = Pretrained("net", (3, 10, 10), (0.5,), (0.5,), 1.0, "center", "bicubic", 5, None, "timm/net.x", True)
    here = Pretrained("here", (3, 10, 10), (0.5,), (0.5,), 1.0, "center", "bicubic", 5, None, "timm/here.x", True)
    known = Registry({"net": "resnet", "here": "mine"}, {"net.x": tag, "here.x": here})
    small = InputSpec(size=5, mean=(0.5,), std=(0.5,))
    models = {
        "plain": Member(arch="net.x", pretrained=True),
        "here": Member(arch="here.x", pretrained=True, finetune=FineTune(mode="linear", epochs=7)),
        "full": Member(arch="net.x", pretrained=True, input=small, finetune=FineTune(mode="full", epochs=2)),
        "own": Member(arch="net", args={"depth": 3}, input=small, train=TRAIN),
    }
    zoo = members.expand(ZooSpec(models=models), known, sizes)
    found = preview.lines(zoo, known, lambda tags: {tag: Size(100, 4000, 8) for tag in tags}, 50, 20, 1000.0, {})
    assert [(line.kind, line.download, line.macs, line.seconds) for line in found] == [
        ("cnn", 400, 4000, 200.0),  # 50 images
        (None, 0, 4000, 280.0),  # 50 + 20 images, features once
        ("cnn", 400, 1000, 170.0),  # 50 + 3·2·20 images at a quarter of the area
        ("cnn", 0, None, None),
    ]
    text = preview.render(found, 1000.0)
    assert "4 models, 0 million parameters" in text
    assert "1 models have no published size" in text


def test_the_table_of_sizes_is_that_of_the_pinned_timm() -> None:
    from kt.zoo import models

    first, _, *rows = registry.TABLE.read_text("utf-8").splitlines()
    pinned = (Path(__file__).resolve().parent.parent / "envs/requirements.lock").read_text("utf-8")
    assert f"timm=={first.removeprefix('# timm ')} " in pinned
    assert len(rows) == len(timm.list_pretrained())
    some = ["resnet18.a1_in1k", "mixer_b16_224.goog_in21k_ft_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    known = {row.split(",")[0]: row.split(",")[1:] for row in rows}
    for name, size in models.sizes_of_tags(some).items():
        assert known[name] == [str(size[key]) for key in ("params", "macs", "feature_width")]
