"""Folders as they come from other systems: names, links, system folders and parts that are not what they seem."""

from __future__ import annotations

import os
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import VAL, by_class, fill, refusal, save_image, spec_of
from PIL import Image

from kt.data import datasets, sources
from kt.data.classes import relabel
from kt.data.datasets import Dataset
from kt.data.folders import folder
from kt.data.listing import ordered, shown
from kt.errors import KtError

# order


def test_names_that_tie_have_one_order_whatever_the_seed_of_hashes_and_the_order_of_the_folder(tmp_path, python):
    names = ["a", "A", "1", "01", "001", "b2", "B2", "b02", "b10"]
    fill(tmp_path, *names, images=1)
    for file in ("X1.png", "x1.png", "x01.png", "X01.png"):
        save_image(tmp_path / "a" / file)
    code = "import sys; from kt.data.folders import folder; from kt.data.spec import DataSpec; import json\n"
    code += "data = folder(DataSpec.model_validate_json(sys.argv[1], strict=False)); print(data.classes, data.names)"
    text = spec_of(tmp_path, size=8).model_dump_json()
    outputs = set()
    for seed in ("0", "1", "2"):
        os.environ["PYTHONHASHSEED"] = seed
        outputs.add(python(code, text).stdout)
    del os.environ["PYTHONHASHSEED"]
    data = folder(spec_of(tmp_path, size=8))
    assert outputs == {f"{data.classes} {data.names}\n"}
    assert data.classes == ["001", "01", "1", "A", "a", "B2", "b02", "b2", "b10"]
    assert data.names[4:9] == ["a/0.png", "a/X01.png", "a/X1.png", "a/x01.png", "a/x1.png"]


@given(st.lists(st.text(st.sampled_from("aAéE\u03010123٣①²½-_ \udce9"), max_size=6), unique=True), st.randoms())
def test_the_order_of_names_is_one_whatever_order_they_come_in(names, random):
    shuffled = random.sample(names, len(names))
    assert ordered(shuffled) == ordered(names)
    assert sorted(ordered(names)) == sorted(names)


def test_digits_that_are_no_decimal_digits_are_sorted_as_text(tmp_path):
    names = ["①", "A5²", "A5", "A10", "٣", "x²", "½"]
    fill(tmp_path, *names, images=1)
    data = folder(spec_of(tmp_path, size=8))
    assert set(data.classes) == set(names)
    assert data.classes == ordered(reversed(names))
    assert data.classes.index("A5") < data.classes.index("A10")


def test_accents_of_two_spellings_are_one_class(tmp_path):
    two = {form: unicodedata.normalize(form, "é-class") for form in ("NFC", "NFD")}
    fill(tmp_path, f"train/{two['NFC']}", f"val/{two['NFD']}", "train/z", "val/z")
    data = folder(spec_of(tmp_path, size=8, **VAL))
    assert (data.classes, data.warnings) == ([two["NFC"], "z"] if "é" < "z" else ["z", two["NFC"]], [])
    assert np.bincount(data.labels).tolist() == [4, 4]
    assert all((tmp_path / name).is_file() for name in data.names)
    for spelling in two.values():
        labels, classes = relabel(data, spec := spec_of(tmp_path, size=8, classes=["z", spelling], **VAL))
        assert classes == ["z", two["NFC"]], spec
        assert set(labels) == {0, 1}
    fill(tmp_path, f"val/{two['NFC']}")
    assert "two class folders are called 'é-class'; rename one" in refusal(tmp_path, **VAL)


def test_names_that_are_no_text_are_written_as_text_and_can_be_opened_and_by_class(tmp_path):
    odd = [os.fsdecode(b"caf\xe9"), "two\nlines"]
    fill(tmp_path / "s", *odd, "plain")
    os.rename(tmp_path / "s/plain/0.png", tmp_path / "s/plain" / os.fsdecode(b"\xff\n.png"))
    (tmp_path / "ids.txt").write_text("plain/\\xff\\x0a.png\n")
    splits = {"transfer": 2, "validation": 2, "test": {"file": str(tmp_path / "ids.txt")}}
    datasets.write(tmp_path / "store", spec_of(tmp_path / "s", size=8, splits=splits))
    data = Dataset.open(tmp_path / "store")
    assert data.class_names == (r"caf\xe9", "plain", r"two\x0alines")
    assert data.splits["name"].tolist()[-1] == r"plain/\xff\x0a.png"
    assert shown("ordinary é ①") == "ordinary é ①"
    (tmp_path / "s/plain" / r"\xff\x0a.png").write_bytes(b"")
    assert r"two files are both called 'plain/\\xff\\x0a.png'; rename one" in refusal(tmp_path / "s")


# system folders and other files


SYSTEM = [
    ".ipynb_checkpoints", "@eaDir", "__MACOSX", ".AppleDouble", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", "#recycle", ".@__thumb", ".git", "@Recycle",
]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_hidden_and_system_folders_are_left_out_and_counted_beside_and_inside_classes(tmp_path, name):
    fill(tmp_path, "ant", "bee", f"ant/{name}", name, f"bee/deep/{name}/deeper")
    data = folder(spec_of(tmp_path, size=8))
    assert data.classes == ["ant", "bee"]
    assert np.bincount(data.labels).tolist() == [2, 2]
    assert data.left_out == {f"folder {name}": 3}
    photos = {"splits": {"transfer": {"folder": str(tmp_path)}, "validation": 1, "test": 1}}
    unlabelled = sources.read(spec_of("digits", size=8, **photos))
    assert len(unlabelled.labels) == 1797 + 4
    assert unlabelled.left_out == {f"folder {name}": 3}


def test_what_is_no_image_is_counted_by_its_ending_and_images_of_all_endings_are_read(tmp_path):
    fill(tmp_path, "ant", "bee")
    for ending in ("avif", "jfif", "jpe", "jp2", "JPEG", "tif", "pbm"):
        save_image(tmp_path / "ant" / f"x.{ending}", mode="1" if ending == "pbm" else "RGB")
    os.rename(tmp_path / "ant/x.tif", tmp_path / "ant/no-ending")
    for name in ("x.heic", "y.HEIC", "Thumbs.db", "README", "P6", ".DS_Store", "._0.png"):
        (tmp_path / "bee" / name).write_bytes(b"P6 is no picture, and neither is this")
    os.mkfifo(tmp_path / "bee/pipe.png")
    found = folder(spec_of(tmp_path, size=8))
    assert np.bincount(found.labels).tolist() == [9, 2]
    assert "ant/no-ending" in found.names
    assert found.left_out == {
        ".heic": 2, ".db": 1, "files without an ending": 2, "hidden files": 2, "neither file nor folder": 1,
    }  # fmt: skip
    save_image(tmp_path / "beside.png")
    splits = {"splits": {"transfer": 4, "validation": 2, "test": 2}}
    facts = datasets.write(tmp_path / "store", spec_of(tmp_path, size=8, damaged="fail", **splits))
    assert datasets.summary(facts) == (
        "2 classes (ant, bee), 0 zoo, 4 transfer, 2 validation, 2 test images; left out: images of no split (3), "
        ".heic (2), files without an ending (2), hidden files (2), .db (1), images beside the folders (1), neither "
        "file nor folder (1)"
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "ant", "bee", "ant/locked")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == f"data: {tmp_path}/ant/locked: the folder cannot be read (Permission denied)"


# links


def test_links_that_lead_back_are_named_and_not_followed(tmp_path):
    fill(tmp_path / "s", "ant", "bee")
    for name, target in [("loop", ".."), ("up", "../.."), ("root", "/"), ("self", "."), ("other", "../bee")]:
        (tmp_path / "s/ant" / name).symlink_to(target)
    (tmp_path / "s/bee/itself").symlink_to("itself")
    (tmp_path / "s/class").symlink_to("/")
    found = folder(spec_of(tmp_path / "s", size=8))
    assert (found.classes, np.bincount(found.labels).tolist()) == (["ant", "bee"], [2, 2])
    back = {f"link that leads back: {tmp_path}/s/ant/{name}": 1 for name in ("loop", "up", "root", "self")}
    elsewhere = {f"link to a folder read elsewhere: {tmp_path}/s/ant/other": 1}
    back |= {f"link that leads back: {tmp_path}/s/class": 1}
    assert found.left_out == back | elsewhere | {"files without an ending": 1}


def test_farms_of_links_are_read_as_the_folders_and_files_they_point_to(tmp_path):
    fill(tmp_path / "store", "c1", "c2", "more", images=3)
    farm = tmp_path / "farm"
    (farm / "train/b").mkdir(parents=True)
    (farm / "val/b").mkdir(parents=True)
    (farm / "train/a").symlink_to(tmp_path / "store/c1")
    (farm / "train/b/deep").symlink_to(tmp_path / "store/more")
    (tmp_path / "other").symlink_to(tmp_path / "store/c2")
    (farm / "val/a").symlink_to(tmp_path / "other")
    (farm / "val/b/0.png").symlink_to(tmp_path / "store/c2/0.png")
    found = by_class(farm, **VAL)
    assert found == {
        "a": ["train/a/0.png", "train/a/1.png", "train/a/2.png", "val/a/0.png", "val/a/1.png", "val/a/2.png"],
        "b": ["train/b/deep/0.png", "train/b/deep/1.png", "train/b/deep/2.png", "val/b/0.png"],
    }


@pytest.mark.parametrize("link", ["train/c", "val/a"])
def test_a_folder_that_is_two_classes_or_in_two_parts_is_refused(tmp_path, link):
    fill(tmp_path, "train/a", "train/b", "val/b")
    (tmp_path / link).symlink_to(tmp_path / "train/a")
    assert f"train/a and {tmp_path}/{link} are the same folder" in refusal(tmp_path, **VAL)


def test_a_link_to_nothing_with_the_ending_of_an_image_is_a_damaged_image(tmp_path):
    fill(tmp_path, "ant", "bee")
    (tmp_path / "ant/gone.jpg").symlink_to(".git/annex/objects/x")
    with pytest.raises(KtError, match=r"ant/gone.jpg \(a link to a file that is not there .*`git annex get`"):
        datasets.write(
            tmp_path / "store", spec_of(tmp_path, size=8, splits={"transfer": 3, "validation": 1, "test": 1})
        )


# the same picture twice


def test_pictures_in_two_splits_or_under_two_classes_are_counted_whatever_their_files(tmp_path, caplog):
    fill(tmp_path, "train/a", "train/b", "val/a", "val/b", images=4)
    picture = Image.open(tmp_path / "train/a/0.png")
    picture.save(tmp_path / "val/a/copy.bmp")
    os.link(tmp_path / "val/b/1.png", tmp_path / "val/a/other.png")
    splits = {"transfer": 7, "validation": 1, "test": {"part": "val"}}
    facts = datasets.write(tmp_path / "store", spec_of(tmp_path, size=16, splits=splits))
    assert facts["repeated"] == {"splits": 2, "classes": 2}
    assert "2 images are in two splits, pixel by pixel the same: train/a/0.png = val/a/copy.bmp" in caplog.text
    assert "2 images are under two classes, pixel by pixel the same: val/a/other.png = val/b/1.png" in caplog.text


def test_many_copies_of_one_picture_are_counted_and_a_few_of_them_named(tmp_path, caplog):
    for i in range(40):
        save_image(tmp_path / "s" / "ab"[i % 2] / f"{i}.png")
    splits = {"transfer": 20, "validation": 10, "test": 10}
    facts = datasets.write(tmp_path / "store", spec_of(tmp_path / "s", size=8, splits=splits))
    assert facts["repeated"] == {"splits": 40, "classes": 40}
    assert "40 images are under two classes, pixel by pixel the same: a/0.png = a/2.png = a/4.png = …" in caplog.text
    assert max(map(len, caplog.text.splitlines())) < 300
