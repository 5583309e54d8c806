"""What is wrong with images and checkpoints and shows when the configuration is read, before any job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from studies import small_zoo

from kt.data.sources import known_classes
from kt.data.spec import DataSpec
from kt.errors import KtError
from kt.study import load as config
from kt.study.check import check, check_images
from kt.study.study import Study
from kt.zoo import weights


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three class folders with an image each, one of them deeper."""
    for place in ("a", "b", "c/deep"):
        (tmp_path / "pictures" / place).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / place / "0.png")
    return tmp_path / "pictures"


def load(folder: Path, data: dict[str, Any], **member: Any) -> Study:
    study = {
        "results": str(folder / "results"),
        "data": {"splits": {"zoo": 9, "transfer": 9, "validation": 9, "test": 9}, **data},
        "zoo": small_zoo(x={"arch": "test_byobnet", **member}, y={"arch": "tiny_mixer", "train": {"epochs": 1}}),
        "pairs": {"select": "all"},
        "transfer": {"methods": {"kl": {}}, "training": {"epochs": 1, "batch_size": 2, "lr": 1e-3}},
    }
    return check(config.parse(yaml.safe_load(yaml.safe_dump(study)), "study.yaml"))


TRAIN: dict[str, Any] = {"train": {"epochs": 1}}


def test_an_empty_class_folder_is_named_until_the_images_are_stored(pictures, tmp_path):
    data = {
        "source": str(pictures),
        "size": 8,
        "splits": {"zoo": 1, "transfer": {"share": 0.4}, "validation": 1, "test": 1},
    }
    load(tmp_path, data, **TRAIN)
    (pictures / "d").mkdir()
    (pictures / "d" / "notes.txt").write_text("not an image")
    with pytest.raises(KtError, match=r"data.source: .*/d: no image in this class folder; delete or fill it"):
        load(tmp_path, data, **TRAIN)
    (tmp_path / "results/data").mkdir(parents=True)
    (tmp_path / "results/data/meta.json").write_text("{}")
    load(tmp_path, data, **TRAIN)


def test_classes_are_counted_where_that_is_quick(pictures):
    def count(**data: Any) -> int | None:
        splits = {"transfer": 1, "validation": 1, "test": 1}
        return known_classes(DataSpec.model_validate({"splits": splits, **data}))

    assert count(source="digits") == 10
    assert count(source="digits", classes=["3", "5"]) == 2
    assert count(source=str(pictures), size=8) == 3
    assert count(source=str(pictures), size=8, classes={"a": 6}) == 7
    assert count(source=str(pictures), size=8, num_classes=1000) == 1000
    assert count(source="torch/cifar10", size=8) is None


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_the_head_of_a_safetensors_file_is_checked_from_its_header(tmp_path, prefix):
    model, file = timm.create_model("test_byobnet", num_classes=7, in_chans=1), tmp_path / "seven.safetensors"
    weights.save_file({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, file)
    other = r"zoo.models.x.checkpoint: .*seven.safetensors: its head has 7 outputs, but 10 are needed; give `finetune`"
    with pytest.raises(KtError, match=other):
        load(tmp_path, {"source": "digits"}, checkpoint=str(file))
    (tmp_path / "results/data").mkdir(parents=True)
    (tmp_path / "results/data/meta.json").write_text("{}")
    with pytest.raises(KtError, match=other):  # also once the images are decoded
        load(tmp_path, {"source": "digits"}, checkpoint=str(file))
    load(
        tmp_path,
        {"source": "digits", "num_classes": 10},
        checkpoint=str(file),
        finetune={"mode": "linear", "epochs": 1},
    )
    load(tmp_path, {"source": "digits", "classes": list(map(str, range(7)))}, checkpoint=str(file))


def test_published_heads_are_checked_at_once(tmp_path):
    with pytest.raises(KtError, match=r"zoo.models.x: its head has 1000 outputs, but 10 are needed"):
        load(tmp_path, {"source": "digits"}, arch="test_vit.r160_in1k", pretrained=True)


def test_a_split_that_is_smaller_than_a_batch_of_a_recipe_is_found_by_config_check(tmp_path):
    study = load(tmp_path, {"source": "digits"}, train={"epochs": 1, "batch_size": 9})
    with pytest.raises(KtError, match=r"zoo.models.y.train.batch_size: 32 is larger than its 9 images"):
        check_images(study)
    file, finetune = tmp_path / "w.safetensors", {"mode": "linear", "epochs": 1, "batch_size": 10}
    weights.save(timm.create_model("test_byobnet", in_chans=1), file)
    study = load(tmp_path, {"source": "digits"}, checkpoint=str(file), finetune=finetune)
    with pytest.raises(KtError, match=r"zoo.models.x.finetune.batch_size: 10 is larger than its 9 images"):
        check_images(study)
