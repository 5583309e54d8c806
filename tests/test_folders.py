"""Folders of images: parts, classes and their labels."""

from __future__ import annotations

import numpy as np
import pytest
from images import spec_of

from kt.data import sources
from kt.data.classes import class_map, relabel
from kt.errors import KtError


def test_a_folder_with_a_train_folder_has_parts_and_its_class_folders_are_classes_in_natural_order(folder):
    takes = {"transfer": 5, "validation": {"part": "val", "images": 3}, "test": {"part": "val"}}
    data = sources.read(spec_of(folder, size=16, splits=takes))
    assert data.classes == ["class1", "class2", "class10"]
    assert np.bincount(data.labels).tolist() == [10, 9, 9]
    assert dict(zip(*np.unique(data.parts, return_counts=True), strict=True)) == {"train": 19, "val": 9}
    assert "train/class1/deep/er.webp" in data.names
    alone = sources.read(spec_of(folder / "val", size=16))
    assert (alone.parts, alone.classes) == (None, data.classes)
    assert alone.names[:3] == ["class1/0.png", "class1/1.png", "class1/2.png"]
    only_train = sources.read(spec_of(folder, size=16))
    assert set(only_train.parts) == {"train"}


def test_folders_that_are_no_data_set_give_one_line(folder):
    (folder / "train" / "class3").mkdir()
    with pytest.raises(KtError, match="train/class3: no image in this class folder"):
        sources.read(spec_of(folder, size=16))
    data = sources.read(spec_of(folder, size=16, classes=["class1"]))  # an empty class that is not taken is no harm
    assert set(data.labels) == {0, 1, 3}
    with pytest.raises(KtError, match=r"no part 'vall' in .*; did you mean 'val'"):
        sources.read(spec_of(folder, size=16, splits={"transfer": 1, "validation": 1, "test": {"part": "vall"}}))
    with pytest.raises(KtError, match="class10: no class folders in it"):
        sources.read(spec_of(folder / "val" / "class10", size=16))


# labels


def test_a_list_or_a_mapping_takes_classes_and_gives_them_labels(folder, tmp_path):
    (tmp_path / "c.txt").write_text("class10\nclass1\n")
    (tmp_path / "c.yaml").write_text("{class10: 0, class1: 1}")
    (tmp_path / "c.json").write_text('["class10", "class1"]')
    given = [{"classes": ["class10", "class1"]}, {"classes": {"class10": 0, "class1": 1}}]
    for keys in given + [{"class_file": str(tmp_path / name)} for name in ("c.txt", "c.yaml", "c.json")]:
        spec = spec_of(folder, size=16, **keys)
        labels, names = relabel(sources.read(spec), spec)
        assert names == ["class10", "class1"]
        assert np.array_equal(labels, np.array([1, -1, 0])[sources.read(spec_of(folder, size=16)).labels])
    # several classes may share a label, and models may know more classes than the images have
    spec = spec_of(folder, size=16, classes={"class1": 4, "class2": 4}, num_classes=7)
    labels, names = relabel(sources.read(spec), spec)
    assert (set(labels), names) == ({-1, 4}, ["0", "1", "2", "3", "class2", "5", "6"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": ["class1", "clas2"]}, "data.classes: no class 'clas2' in .*; did you mean 'class2'"),
        ({"class_file": "c.txt"}, "data.class_file: c.txt: no such file"),
        ({"num_classes": 2}, "data.num_classes: 2, but a label is 2"),
        ({"classes": {"class1": 5}, "num_classes": 5}, "data.num_classes: 5, but a label is 5"),
        ({"classes": ["class1"], "class_file": __file__}, "give either data.classes or data.class_file, not both"),
    ],
)
def test_classes_that_do_not_fit_give_one_line(folder, keys, message):
    spec = spec_of(folder, size=16, **keys)
    with pytest.raises(KtError, match=message):
        relabel(sources.read(spec), spec)


@pytest.mark.parametrize("text", ["", "{a: -1}", "{a: true}", "{a: b}", "3", "[a, a]", "{a: ["])
def test_files_that_hold_no_classes_give_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(KtError, match=r"data\.class_file: .*c\.yaml: ") as caught:
        class_map(spec_of("digits", class_file=str(tmp_path / "c.yaml")))
    assert "\n" not in str(caught.value)
