"""Transfer on images without labels: who may use them, where they come from, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import images
import numpy as np
import pytest
import yaml
from PIL import Image
from studies import small_zoo

from kt import stages
from kt.data import scenes, sources
from kt.data.classes import relabel
from kt.data.datasets import Dataset
from kt.data.spec import DataSpec
from kt.data.splits import assign
from kt.errors import KtError
from kt.layout import Layout
from kt.study import load as config
from kt.study.check import check
from kt.study.study import Study
from kt.tables import schema


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits from number 1,700 on, as files without labels in folders of two depths."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep/er").mkdir(parents=True)
    for i, call in enumerate(scenes.digits().stream(np.arange(1700, 1760))):
        Image.fromarray(np.asarray(call())[..., 0]).save(folder / ("deep/er" if i % 2 else ".") / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def study_of(photos: Path, results: Path, **methods: Any) -> dict[str, Any]:
    return {
        "results": str(results),
        "device": "cpu",
        "data": {
            "source": "digits",
            "size": 8,
            "splits": {"zoo": 100, "transfer": {"folder": str(photos), "images": 48}, "validation": 50, "test": 70},
        },
        "zoo": small_zoo(
            **{
                arch: {"arch": arch, "train": {"epochs": 2}}
                for arch in ("test_byobnet", "tiny_mixer", "test_efficientnet")
            }
        ),
        "pairs": {"select": "explicit", "pairs": [{"student": "tiny_mixer"}]},
        "transfer": {
            "methods": methods or {"kl": {}, "kl_dp_unsup": {}, "self": {}},
            "seeds": [0],
            "training": {"epochs": 1, "batch_size": 16, "lr": 1e-3},
        },
    }


def load(study: dict[str, Any]) -> Study:
    return check(config.parse(yaml.safe_load(yaml.safe_dump(study)), "study.yaml"))


def spec_of(photos: Path, transfer: dict[str, Any], **more: Any) -> DataSpec:
    splits = {"transfer": {"folder": str(photos), **transfer}, "validation": 50, "test": 70}
    return DataSpec.model_validate({"source": "digits", "size": 8, "splits": splits, **more})


def test_a_folder_is_listed_after_the_source_and_only_transfer_draws_from_it(photos):
    spec = spec_of(photos, {})
    listing = sources.read(spec)
    labels, classes = relabel(listing, spec)
    assert (len(labels), len(classes)) == (1797 + 60, 10)
    assert (labels[1797:] == -1).all()
    assert np.array_equal(labels[:1797], scenes.digits().labels)
    pictures = [np.asarray(call()).reshape(8, 8) for call in listing.stream(np.array([5, 1796, 1797, 1856]))]
    digits = [np.asarray(call()).reshape(8, 8) for call in scenes.digits().stream(np.arange(1797))]
    assert np.array_equal(pictures[0], digits[5])
    assert np.array_equal(pictures[1], digits[1796])
    assert any(np.array_equal(pictures[2], picture) for picture in digits[1700:1760])
    frame = assign(labels, spec.splits, 0, listing.parts, listing.names)
    assert (frame["split"] == "transfer").tolist() == (frame["row"] >= 1797).tolist()
    assert frame["split"].value_counts().to_dict() == {"transfer": 60, "test": 70, "validation": 50}


@pytest.mark.parametrize(("transfer", "images"), [({"images": 7}, 7), ({"share": 0.5}, 30), ({}, 60)])
def test_some_or_all_of_a_folder(photos, transfer, images):
    spec = spec_of(photos, transfer)
    listing = sources.read(spec)
    frame = assign(relabel(listing, spec)[0], spec.splits, 0, listing.parts, listing.names)
    assert (frame["split"] == "transfer").sum() == images


def test_classes_that_are_not_taken_stay_out_beside_a_folder(photos):
    spec = spec_of(photos, {}, classes=["3", "5"])
    listing = sources.read(spec)
    frame = assign(relabel(listing, spec)[0], spec.splits, 0, listing.parts, listing.names)
    assert set(frame["label"]) == {-1, 0, 1}


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"kl": {}, "kl_dp": {}},
        r"transfer.methods.kl_dp: uses labels, but .* allowed: ensemble_max, .*, kl, ",
    ),
    ({"bikd": {}}, "transfer.methods.bikd: uses labels"),
    ({"finetune": {}}, "transfer.methods.finetune: uses labels"),
]


@pytest.mark.parametrize(("methods", "message"), BAD)
def test_methods_that_need_labels_are_refused_before_anything_runs(photos, tmp_path, methods, message):
    with pytest.raises(KtError, match=message):
        load(study_of(photos, tmp_path / "r", **methods))


def test_groups_need_methods_without_labels_too(photos, tmp_path):
    study = study_of(photos, tmp_path / "r") | {
        "groups": {"choose": {"select": "random", "k": 2}, "methods": {"sequential": {"base": "kl_dp"}}}
    }
    with pytest.raises(KtError, match=r"groups.methods.sequential: uses labels, .* allowed: parallel_unsup"):
        load(study)
    study["groups"]["methods"] = {"sequential": {"base": "kl_dp_unsup"}}
    load(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer": {"folder": "nowhere"}}, "data.splits.transfer.folder: nowhere: no such folder"),
        ({"test": {"folder": "."}}, "test.folder: its images have no labels; allowed for transfer alone"),
        ({"transfer": {"folder": ".", "part": "train"}}, "folder: its images are in no part"),
    ],
)
def test_a_wrong_folder_is_one_line(photos, tmp_path, change, message):
    study = study_of(photos, tmp_path / "r")
    study["data"]["splits"] |= change
    with pytest.raises(KtError, match=message):
        load(study)


def test_an_empty_folder_and_a_missing_size_are_named(photos, tmp_path):
    with pytest.raises(KtError, match=r"data.splits.transfer.folder: .*: no image in it"):
        sources.read(spec_of(tmp_path, {}))
    with pytest.raises(KtError, match=r"data.size: needed"):
        sources.check_source(spec_of(photos, {}, size=None))


def test_a_study_on_unlabelled_images_from_end_to_end(photos, tmp_path):
    study = load(
        study_of(photos, tmp_path / "r")
        | {"groups": {"choose": {"select": "random", "k": 2, "students": ["tiny_mixer"]},
                      "methods": {"parallel_unsup": {}}}}
    )  # fmt: skip
    layout = Layout(Path(study.results))
    stages.data(study, layout, 1)
    data = Dataset.open(layout.data)
    assert data.images.shape == (100 + 48 + 50 + 70, 8, 8, 1)
    assert (data.labels[data.rows("transfer")] == -1).all()
    assert all(data.labels[data.rows(split)].min() == 0 for split in ("zoo", "validation", "test"))
    for name in study.names:
        stages.weights(study, layout, name, 1)
        stages.predict(study, layout, name, 1)
    stages.zoo(study, layout, layout.table("zoo"))
    stages.complementarity(study, layout, "test", layout.complementarity("test"), 1)
    with pytest.raises(KtError, match="the split 'transfer' have no labels; allowed: validation, test"):
        stages.complementarity(study, layout, "transfer", tmp_path / "t.parquet", 1)
    stages.pairs(study, layout, None, None, layout.table("pairs"))
    stages.transfer(study, layout, "tiny_mixer", 0, None, layout.transfer("tiny_mixer", 0), 1)
    stages.groups(study, layout, "tiny_mixer", layout.transfer("tiny_mixer", "groups"), 1)
    stages.gather(study, layout, layout.tables)
    rows = schema.read_frame(layout.table("transfers"), "transfers")
    assert rows["status"].eq("ok").all()
    assert rows["steps"].eq(3).all()
    assert rows["n"].eq(70).all()
    assert not rows["uses_labels"].any()
    taught = rows.set_index("method")["teacher_share"]
    assert (taught["kl"] == 100).all()
    assert taught["kl_dp_unsup"].between(0, 100).all()
    assert set(schema.read_frame(layout.table("methods"), "methods")["method"]) == {"kl", "kl_dp_unsup", "self"}


def test_a_folder_whose_images_have_labels_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b", "more"):
        images.save_image(tmp_path / "s" / name / "0.png", seed=len(name))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/link").symlink_to(tmp_path / "s/val/a")
    for folder in ("s", "s/val", "s/val/b", "photos"):
        splits = {"transfer": {"folder": str(tmp_path / folder)}, "validation": 1, "test": {"part": "val"}}
        spec = images.spec_of(tmp_path / "s", size=8, splits=splits)
        for call in (sources.read, sources.part_sizes):
            with pytest.raises(KtError, match=r"/s/[a-z]*/[ab] is read with labels, too, so that its images would be"):
                call(spec)
    splits = {"transfer": {"folder": str(tmp_path / "s/more")}, "validation": 1, "test": {"part": "val"}}
    assert (sources.read(images.spec_of(tmp_path / "s", size=8, splits=splits)).labels < 0).sum() == 1
