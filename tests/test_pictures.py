"""Pictures of all kinds: modes, depths, orientations and sizes, and files that are none."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from images import save_image, spec_of
from PIL import Image, ImageFile

from kt.data import datasets
from kt.data.decode import decode
from kt.data.fit import fit
from kt.data.folders import folder
from kt.data.walk import NotReadable, open_picture
from kt.errors import KtError

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
FLAG = np.zeros((40, 60, 3), np.uint8)
FLAG[:20, :30], FLAG[20:, 30:] = (255, 0, 0), (0, 255, 0)


def stored(path: Path, size: int = 48, channels: int = 1) -> np.ndarray:
    return fit(open_picture(str(path)), size, channels)


def save_pgm(path: Path, values: np.ndarray, largest: int) -> None:
    path.write_bytes(b"P5 %d %d %d\n" % (*values.shape[::-1], largest) + values.astype(">u2").tobytes())


def test_sixteen_bits_keep_their_full_range_in_all_formats(tmp_path):
    expected = fit(Image.fromarray((RAMP >> 8).astype(np.uint8)), 48, 1)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(RAMP).save(tmp_path / "a.tif")
    Image.fromarray(RAMP).save(tmp_path / "a.jp2", irreversible=False)
    save_pgm(tmp_path / "a.pgm", RAMP, 65535)
    for name in ("a.png", "a.tif", "a.pgm", "a.jp2"):
        assert np.array_equal(stored(tmp_path / name), expected), name
    save_pgm(tmp_path / "twelve.pgm", RAMP >> 4, 4095)
    assert np.abs(stored(tmp_path / "twelve.pgm").astype(int) - expected).max() <= 1
    Image.fromarray(RAMP).save(tmp_path / "negative.tif", tiffinfo={262: 0})  # white is zero, as scanners have it
    negative = stored(tmp_path / "negative.tif").astype(int)
    assert np.abs(negative + expected - 255).max() <= 1


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "whole.tif")
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "floats.tif")
    for name, kind in (("whole", "whole numbers"), ("floats", "floating-point numbers")):
        with pytest.raises(NotReadable, match=f"pixels are {kind} of 32 bits, .*; convert to 8 or 16 bits"):
            stored(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB"])
def test_colour_is_colour_in_all_modes(tmp_path, mode):
    Image.fromarray(FLAG).convert(mode).save(path := tmp_path / "x.tif")
    difference = np.abs(stored(path, 40, 3).astype(int) - fit(Image.fromarray(FLAG), 40, 3))
    assert difference.mean() < 10


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_grey_in_all_modes(tmp_path, mode):
    square = np.zeros((40, 40), np.uint8)
    square[:, 20:] = 255
    Image.fromarray(square).convert(mode).save(path := tmp_path / "x.png")
    assert np.array_equal(stored(path, 40)[..., 0], square)


def test_what_lies_behind_transparency_shows_and_nothing_is_warned_of(tmp_path):
    colour = Image.fromarray(FLAG)
    clear = colour.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "rgba.png")
    colour.quantize(4).save(tmp_path / "palette.png", transparency=b"\0\0\0\1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("rgba.png", "palette.png"):
            assert np.array_equal(stored(tmp_path / name, 40, 3), fit(colour, 40, 3))


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.tif", "x.png"])
def test_the_first_frame_is_taken(tmp_path, name):
    more = [Image.new("RGB", (60, 40), "blue")]
    options = {"lossless": True} if name == "x.webp" else {}
    Image.fromarray(FLAG).save(tmp_path / name, save_all=True, append_images=more, **options)
    assert np.array_equal(stored(tmp_path / name, 40, 3), fit(Image.fromarray(FLAG), 40, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif", "lzw.tif"])
def test_pictures_are_upright_whatever_holds_their_orientation(tmp_path, name, orientation):
    made = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Transpose that the camera made
    flag = Image.fromarray(FLAG)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = flag if made is None else flag.transpose(Image.Transpose(made))
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    turned.save(tmp_path / name, exif=exif, **options)
    assert np.abs(stored(tmp_path / name, 40, 3).astype(int) - fit(flag, 40, 3)).mean() < 12
    content = io.BytesIO((tmp_path / name).read_bytes())  # as it lies in tar files and columns
    assert np.array_equal(fit(open_picture(content), 40, 3), stored(tmp_path / name, 40, 3))


def test_damaged_exif_leaves_a_picture_as_it_is(tmp_path):
    Image.fromarray(FLAG).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert stored(tmp_path / "x.jpg", 40, 3).shape == (40, 40, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_an_extremely_oblong_picture_is_cropped_before_it_is_resized(monkeypatch, turned):
    columns = (np.arange(60_000) // 100 % 256).astype(np.uint8)
    pixels = np.repeat(np.broadcast_to(columns, (2, 60_000))[..., None], 3, -1)
    picture = Image.fromarray(np.ascontiguousarray(pixels.swapaxes(0, 1) if turned else pixels))
    made, resize = list[tuple[int, int]](), Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda i, size, *a, **k: made.append(size) or resize(i, size, *a, **k))
    square = fit(picture, 256, 3)
    assert made == [(256, 256)]
    assert square.shape == (256, 256, 3)
    assert set(np.unique(square)) <= {columns[29_999], columns[30_000]}  # the two columns in the middle


def test_the_crop_of_a_long_picture_is_that_of_the_resized_one(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 400, 3), dtype=np.uint8)
    whole = fit(Image.fromarray(pixels), 32, 3)
    monkeypatch.setattr("kt.data.fit.LARGEST", 100)
    assert np.abs(fit(Image.fromarray(pixels), 32, 3).astype(int) - whole).max() <= 1


def test_files_that_are_no_pictures_say_what_they_are(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    for name, content, message in [
        ("empty.jpg", b"", "an empty file"),
        ("annex.jpg", b"/annex/objects/MD5-s1--x", "a pointer of git-annex, not the file itself; run `git annex get`"),
        ("text.jpg", b"<html>404", "no image that Pillow reads"),
        ("bomb.png", None, r"more than the 178,956,970 pixels that Pillow reads; store a smaller copy of it"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(NotReadable, match=message):
            open_picture(str(tmp_path / name))


def test_a_pointer_of_git_lfs_stops_the_stage_even_where_damaged_images_are_skipped(tmp_path):
    for i in range(9):
        save_image(tmp_path / "s" / "ab"[i % 2] / f"{i}.png", seed=i)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "s/a/x.png").write_text(pointer)
    (tmp_path / "s/a/no-ending").write_text(pointer)
    spec = spec_of(
        tmp_path / "s", size=8, damaged="skip", max_damaged=1.0, splits={"transfer": 8, "validation": 2, "test": 1}
    )
    with pytest.raises(KtError, match=r"data.source: .*/s/a/.*: a Git LFS pointer, .*run `git lfs pull`"):
        datasets.write(tmp_path / "store", spec)


def test_truncated_pictures_are_damaged_whatever_other_modules_ask_of_pillow(tmp_path, monkeypatch):
    save_image(tmp_path / "s/a/x.jpg", (200, 200))
    save_image(tmp_path / "s/b/y.jpg", (200, 200), seed=1)
    whole = (tmp_path / "s/a/x.jpg").read_bytes()
    (tmp_path / "s/a/x.jpg").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    spec = spec_of(tmp_path / "s", size=8)
    with pytest.raises(KtError, match=r"damaged images: 1 of 2, .*a/x.jpg \(OSError: image file is truncated"):
        decode(folder(spec), np.arange(2), spec, tmp_path / "images.npy", 1)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
