"""Decoding: modes, sizes, damaged images, and going on after a kill."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import TAKE_ALL, damage, spec_of
from PIL import Image

from kt.data import datasets, decode
from kt.data.datasets import Dataset
from kt.data.fit import fit
from kt.data.spec import SPLITS
from kt.errors import KtError


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_an_image_is_stored_as_torchvision_resizes_and_crops_it(width, height, size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])(Image.fromarray(pixels))
    assert np.array_equal(fit(Image.fromarray(pixels), size, 3), np.asarray(theirs))
    assert np.array_equal(fit(pixels, size, 3), np.asarray(theirs))


@pytest.mark.parametrize(("mode", "value"), [("RGB", 77), ("L", 77), ("RGBA", 77), ("P", 77), ("CMYK", 77), ("1", 255)])
def test_images_of_all_modes_become_colour_or_grey(mode, value):
    image = Image.new("RGB", (12, 9), (value, value, value)).convert(mode)
    for channels in (1, 3):
        stored = fit(image, 6, channels)
        assert stored.shape == (6, 6, channels)
        assert (np.abs(stored.astype(int) - value) <= 1).all()  # a palette has its steps
    deep = Image.fromarray(np.full((9, 12), 77 * 256 + 99, np.uint16))
    assert (fit(deep, 6, 3) == 77).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 25])
def test_a_folder_is_decoded_alike_however_it_is_cut(folder, tmp_path, monkeypatch, threads, chunk_bytes):
    spec = spec_of(folder, size=16, splits={"transfer": 9, "validation": 5, "test": {"part": "val"}})
    monkeypatch.setattr(decode, "CHUNK_BYTES", chunk_bytes)
    datasets.write(tmp_path / "store", spec, threads)
    data = Dataset.open(tmp_path / "store")
    assert (data.images.shape, data.class_names) == ((23, 16, 16, 3), ("class1", "class2", "class10"))
    for split in SPLITS[1:]:
        mine = data.splits[data.splits["split"] == split]
        for row, name, label in zip(mine["row"], mine["name"], mine["label"], strict=True):
            assert np.array_equal(data.images[row], fit(Image.open(folder / name), 16, 3))
            assert data.class_names[label] == name.split("/")[1]
            assert label == data.labels[row]
            assert name.startswith("val" if split == "test" else "train")
    assert sorted(os.listdir(tmp_path / "store")) == ["images.npy", "labels.npy", "meta.json", "splits.parquet"]


def test_damaged_images_stop_the_stage_and_are_named(folder, tmp_path):
    names = damage(folder)
    with pytest.raises(KtError, match=r"damaged images: 2 of 28, mend them, or set data.damaged: skip: ") as caught:
        datasets.write(tmp_path / "store", spec_of(folder, size=16, splits=TAKE_ALL))
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)
    with pytest.raises(KtError, match=r"more than data.max_damaged \(0.05\) allows"):
        datasets.write(tmp_path / "store", spec_of(folder, size=16, splits=TAKE_ALL, damaged="skip", max_damaged=0.05))


def test_damaged_images_that_are_skipped_are_counted_and_named_and_in_no_split(folder, tmp_path, caplog):
    whole = spec_of(folder, size=16, splits=TAKE_ALL)
    datasets.write(tmp_path / "whole", whole)
    names = damage(folder)
    datasets.write(tmp_path / "store", whole.model_copy(update={"damaged": "skip", "max_damaged": 0.1}))
    before, data = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "store")
    assert len(data.splits) == 26
    assert not data.splits["name"].isin(names).any()
    kept = before.splits[~before.splits["name"].isin(names)].reset_index(drop=True)
    assert kept.equals(data.splits)
    assert np.array_equal(before.images[kept["row"]], data.images[kept["row"]])
    assert sorted(json.loads((tmp_path / "store/meta.json").read_text())["damaged"]) == names
    assert "2 damaged images are left out: " in caplog.text
    assert before.hash != data.hash


def test_a_split_that_loses_all_its_images_is_an_error(folder, tmp_path):
    (folder / "val/class1/0.png").write_bytes(b"")
    (tmp_path / "one.txt").write_text("val/class1/0.png")
    takes = {"transfer": 5, "validation": 5, "test": {"part": "val", "file": str(tmp_path / "one.txt")}}
    with pytest.raises(KtError, match=r"data.splits.test: no image is left for it"):
        datasets.write(tmp_path / "s", spec_of(folder, size=16, splits=takes, damaged="skip", max_damaged=1.0))


def test_decoding_goes_on_after_a_kill_at_the_chunk_where_it_was(folder, tmp_path, monkeypatch, python):
    spec = spec_of(folder, size=16, splits=TAKE_ALL, damaged="skip", max_damaged=0.1)
    damage(folder)
    datasets.write(tmp_path / "whole", spec)
    code = """
import os, signal, sys
from pathlib import Path
from kt.data import datasets, decode
from kt.data.spec import DataSpec
from kt.store import Growing
append, left = Growing.append, [4]
def killing(self, rows, note):
    if not left[0]:
        self.path.open("ab").write(b"half a row")
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    append(self, rows, note)
Growing.append, decode.CHUNK_BYTES = killing, 2000
datasets.write(Path(sys.argv[1]), DataSpec.model_validate_json(sys.argv[2], strict=False))
"""
    assert python(code, tmp_path / "store", spec.model_dump_json()).returncode == -9
    seen: list[int] = []
    monkeypatch.setattr(decode, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(decode, "fit", lambda *args: seen.append(1) or fit(*args))
    datasets.write(tmp_path / "store", spec)
    assert 28 - 4 * 2 - 2 <= len(seen) <= 28 - 4 * 2  # four chunks of two were done; a damaged image may not get to fit
    same = [(tmp_path / name / "images.npy").read_bytes() for name in ("whole", "store")]
    assert same[0] == same[1]
    assert Dataset.open(tmp_path / "store").splits.equals(Dataset.open(tmp_path / "whole").splits)


def test_what_was_decoded_for_another_configuration_is_not_used(folder, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*args: object) -> None:
        raise Stop

    spec = spec_of(folder, size=16, splits=TAKE_ALL)
    for size in (16, 20):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "CHUNK_BYTES", 2000)
            patch.setattr(decode.Progress, "step", stop)
            with pytest.raises(Stop):
                datasets.write(tmp_path / "store", spec.model_copy(update={"size": size}))
    datasets.write(tmp_path / "store", spec)
    datasets.write(tmp_path / "whole", spec)
    assert (tmp_path / "store/images.npy").read_bytes() == (tmp_path / "whole/images.npy").read_bytes()
