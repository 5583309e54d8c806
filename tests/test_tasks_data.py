"""A task without classes on oblong images, from the data set to its members and their predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vectors
import yaml

from kt import predictions
from kt.cli import main
from kt.data import datasets, sources
from kt.data.datasets import Dataset
from kt.data.spec import DataSpec
from kt.errors import KtError
from kt.study import load
from kt.zoo import train
from kt.zoo.spec import Recipe

N, SIDES = 96, (12, 20)
SPLITS = {"zoo": 40, "transfer": 24, "validation": 12, "test": 20}
RESNET = {"arch": "resnet10t", "args": {"channels": [8, 8, 16, 16], "stem_width": 8}}
STUDY: dict[str, Any] = {
    "results": "results",
    "device": "cpu",
    "data": {"source": "pictures.npz", "task": "vectors", "splits": SPLITS},
    "zoo": {
        "input": {"size": list(SIDES), "mean": [0.5] * 3, "std": [0.25] * 3},
        "models": {
            "resnet": {**RESNET, "train": {"epochs": 40, "augment": "shift", "batch_size": 8}},
            "vit": {
                "arch": "vit_tiny_patch16_224",
                "args": {"img_size": list(SIDES), "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2},
                "train": {"epochs": 2, "batch_size": 8},
            },
        },
    },
    "pairs": {"select": "all"},
    "transfer": {
        "methods": {"kl": {}},
        "seeds": [0],
        "training": {"epochs": 1, "batch_size": 8, "lr": 1e-4},
        "views": {"n": 2},
    },
}


def pictures(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Noise of some colour, uint8 [n, 12, 20, 3], and that colour in [0, 1], float64 [n, 3]."""
    generator = np.random.default_rng(0)
    colour = generator.random((n, 3))
    images = 200 * colour[:, None, None] + generator.integers(0, 50, (n, *SIDES, 3))
    return images.astype(np.uint8), colour


def spec(file: Path, **keys: Any) -> DataSpec:
    return DataSpec.model_validate({"source": str(file), "task": "vectors", "splits": SPLITS} | keys)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images, truth = pictures()
    np.savez(tmp_path / "pictures.npz", images=images, truth=truth)
    return tmp_path / "pictures.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages `data`, `weights` and `predictions` of the study, done."""
    folder = tmp_path_factory.mktemp("vectors")
    images, truth = pictures()
    np.savez(folder / "pictures.npz", images=images, truth=truth)
    (folder / "c.yaml").write_text(yaml.safe_dump(STUDY))
    config = ("--config", str(folder / "c.yaml"))
    assert main(["data", *config]) == 0
    for name in STUDY["zoo"]["models"]:
        assert main(["weights", "--model", name, *config]) == 0
        assert main(["predictions", "--model", name, *config]) == 0
    return folder


# the data set


def test_a_data_set_keeps_truths_of_any_shape(source, tmp_path):
    facts = datasets.write(tmp_path / "d", spec(source))
    dataset = Dataset.open(tmp_path / "d")
    images, truth = pictures()
    rows = np.sort(dataset.splits["image_id"].to_numpy())
    assert np.array_equal(dataset.images, images[rows])
    assert np.array_equal(dataset.truth, truth[rows].astype(np.float32))
    assert dataset.truth.dtype == np.float32
    assert {split: len(dataset.rows(split)) for split in SPLITS} == SPLITS == facts["images"]
    assert (dataset.class_names, dataset.splits["label"].unique().tolist()) == ((), [-1])
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        *("images.npy", "meta.json", "splits.parquet", "truth.npy"),
    ]
    assert datasets.summary(facts).startswith("task vectors, 40 zoo, 24 transfer, 12 validation, 20 test images")


def test_its_hash_tells_truths_apart_also_by_their_shape(tmp_path):
    def hashed(truth: np.ndarray) -> str:
        np.savez(tmp_path / "p.npz", images=pictures()[0], truth=truth)
        return str(datasets.write(tmp_path / "d", spec(tmp_path / "p.npz", task="flat"))["hash"])

    class Flat(vectors.Vectors):
        name = "flat"

        def check_truth(self, at: str, truth: Any) -> Any:
            return truth

    truth = np.arange(N * 4.0).reshape(N, 4)
    shapes = [truth, truth.reshape(N, 2, 2), truth.astype(np.float32), truth.view(np.int64), truth + 1]
    assert len({*map(hashed, shapes)}) == len(shapes)
    assert hashed(truth) == hashed(truth)


def test_official_parts_of_an_npz_file_have_truths(tmp_path):
    images, truth = pictures()
    np.savez(tmp_path / "p.npz", x_train=images[:80], y_train=truth[:80], x_val=images[80:], y_val=truth[80:])
    splits = {"transfer": 60, "validation": 20, "test": {"part": "val", "images": 16}}
    given = spec(tmp_path / "p.npz", splits={**splits, "validation": 19})
    datasets.write(tmp_path / "d", given)
    dataset = Dataset.open(tmp_path / "d")
    ids = dataset.ids("test")
    assert ids.min() >= 80
    assert np.array_equal(dataset.truth[dataset.rows("test")], truth[ids].astype(np.float32))
    assert sources.part_sizes(given).images == {"train": 80, "val": 16}


def test_images_without_a_truth_are_left_out(tmp_path):
    class Partly(vectors.Vectors):
        name = "partly"

        def labelled(self, truth: Any) -> Any:
            return np.isfinite(truth).all(1)

    images, truth = pictures()
    truth[::12] = np.nan
    np.savez(tmp_path / "p.npz", images=images, truth=truth)
    given = spec(tmp_path / "p.npz", task="partly", splits={**SPLITS, "zoo": 32})
    facts = datasets.write(tmp_path / "d", given)
    assert np.isfinite(Dataset.open(tmp_path / "d").truth).all()
    assert facts["left_out"] == {"images without a truth": 8}
    assert sources.part_sizes(given).images == {None: 88}


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"classes": ["a", "b"]},
            "data.classes: is about classes, which the task 'vectors' does not have; leave it out",
        ),
        ({"num_classes": 3}, "data.num_classes: is about classes, which"),
        ({"class_order": "sorted"}, "data.class_order: "),
        ({"source": "digits"}, "data.source: 'digits' has classes, but the task 'vectors' has none; allowed: an .npz"),
        ({"source": "torch/cifar10"}, "data.source: 'torch/cifar10' has classes, but"),
        ({"task": "vektors"}, "data.task: unknown task 'vektors'.*did you mean 'vectors'"),
        ({"size": [12, 0]}, r"needs a whole number of pixels greater than 0, or \[height, width\]"),
    ],
)
def test_what_makes_no_sense_without_classes_is_refused(source, keys, line):
    with pytest.raises((KtError, ValueError), match=line):
        sources.read(spec(source, **keys))


def test_a_folder_without_truths_is_refused(source, tmp_path):
    (tmp_path / "more").mkdir()
    splits = {**SPLITS, "transfer": {"folder": str(tmp_path / "more")}}
    with pytest.raises(
        KtError, match=r"data.splits.transfer.folder: its images have no truth, which the task 'vectors'"
    ):
        sources.read(spec(source, splits=splits, size=12))


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"labels": np.zeros(N, np.int64)}, "no array 'truth'; it holds: images, labels"),
        ({"truth": np.zeros((N - 1, 3))}, "95 truth for 96 images; one per image is needed"),
        ({"truth": np.float64(1)}, "no row of truth for 96 images"),
        ({"truth": np.zeros((N, 2))}, r"pictures.npz: needs \[N, 3\] numbers, not \[96, 2\]"),
    ],
)
def test_truths_that_are_none_are_one_line(source, arrays, line):
    np.savez(source, images=pictures()[0], **arrays)
    with pytest.raises(KtError, match=line):
        datasets.write(source.parent / "d", spec(source))


def test_parts_whose_truths_differ_in_shape_are_refused(source):
    images = pictures()[0]
    np.savez(source, x_train=images, y_train=np.zeros((N, 3)), x_val=images, y_val=np.zeros((N, 4)))
    with pytest.raises(KtError, match="y_train, y_val have different types or shapes"):
        sources.read(spec(source))


# members


def test_members_learn_the_task(folder):
    study = load.load(folder / "c.yaml")
    dataset = Dataset.open(study.layout.data)
    truth = dataset.truth[dataset.rows("test")]
    found = predictions.read(study.layout.predictions("resnet"), "test")
    error = np.abs(np.asarray(found.answers, np.float32) - truth).mean()
    assert error < 0.7 * np.abs(truth.mean(0) - truth).mean()
    fact = json.loads(study.layout.member("resnet").read_text())
    assert (fact["input_size"], fact["train_images"], fact["macs"] > 0) == (15, 40, True)


def test_predictions_are_answers_and_what_the_task_keeps_of_them_in_float32(folder):
    study = load.load(folder / "c.yaml")
    dataset = Dataset.open(study.layout.data)
    for name in study.members:
        predictions.verify(study.layout.predictions(name))
        for split in predictions.SPLITS:
            views = 2 if split == "transfer" else 1
            truth = np.concatenate([dataset.truth[dataset.rows(split)]] * views)
            found = predictions.read(study.layout.predictions(name), split)
            assert (found.answers.dtype, found.answers.shape) == (np.float16, (SPLITS[split] * views, 3))
            assert (found.kept.dtype, found.kept.shape) == (np.float32, (SPLITS[split] * views,))
            assert np.array_equal(found.ids, np.concatenate([dataset.ids(split)] * views))
            np.testing.assert_allclose(found.kept, np.abs(found.answers - truth).mean(1), atol=1e-3)


def test_a_trained_members_loss_is_that_of_the_task():
    images, truth = pictures(16)
    recipe, losses = Recipe(epochs=1, batch_size=16, lr=1e-3), list[float]()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 20, 3))

    def batch(positions: np.ndarray, _: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(images[positions]).float().permute(0, 3, 1, 2) / 255
        return x, torch.from_numpy(truth[positions])

    with torch.no_grad():
        before = model(batch(np.arange(16), torch.Generator())[0])
    expected = (before - torch.from_numpy(truth)).square().mean().item()
    report = lambda _, loss: losses.append(loss)  # noqa: E731
    train.train(model, batch, 16, vectors.Vectors().loss, recipe, torch.device("cpu"), report)
    assert losses == pytest.approx([expected])


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            {"train": {"epochs": 1, "thin": {"classes": [1]}}},
            "zoo.models.m.train.thin: is about classes, which the task",
        ),
        ({"train": {"epochs": 1}, "classes": [0, 1]}, "zoo.models.m.classes: is about classes, which the task"),
    ],
)
def test_members_about_classes_are_refused(folder, model, line):
    models = {**STUDY["zoo"]["models"], "m": RESNET | model}
    (folder / "other.yaml").write_text(yaml.safe_dump({**STUDY, "zoo": {**STUDY["zoo"], "models": models}}))
    with pytest.raises(KtError, match=line):
        load.load(folder / "other.yaml")


def test_a_checkpoint_has_the_outputs_that_the_task_needs(folder, capsys):
    study = load.load(folder / "c.yaml")
    checkpoint = str(study.layout.weights("resnet"))
    given = {**RESNET, "checkpoint": checkpoint}
    zoo = {**STUDY["zoo"], "models": {"given": given, "vit": STUDY["zoo"]["models"]["vit"]}}
    (folder / "given.yaml").write_text(yaml.safe_dump({**STUDY, "results": "given", "zoo": zoo}))
    config = ("--config", str(folder / "given.yaml"))
    for stage in (["data"], ["weights", "--model", "given"], ["predictions", "--model", "given"]):
        assert main([*stage, *config]) == 0, capsys.readouterr().err
    own = load.load(folder / "given.yaml").layout
    one, two = (
        predictions.read(place.predictions(name), "test") for place, name in ((own, "given"), (study.layout, "resnet"))
    )
    assert np.array_equal(one.answers, two.answers)


def test_a_new_version_of_a_task_is_another_data_set_for_predictions_and_units(monkeypatch, tmp_path):
    study = load.parse(STUDY, "c.yaml", str(tmp_path))
    before = study.shown("data")
    monkeypatch.setattr(vectors.Vectors, "version", 2)
    assert len({"data", before, study.shown("data")}) == 3
