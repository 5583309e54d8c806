"""Videos: layouts, maps and fixations in files, targets, splits, damage, geometry, and the built-in ones."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import torn_decoding
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from kt.data import datasets, decode, moving, sources
from kt.data.datasets import Dataset
from kt.data.fit import fit, place_of, placed
from kt.data.listing import Framed, Masked
from kt.data.moving import MovingDigits, made
from kt.data.spec import DataSpec
from kt.data.videos import Looks, Video, divided, frames_of, listing_of
from kt.errors import KtError

SIDES = (24, 32)
SPLITS = {"transfer": 3, "validation": 1, "test": 1}


def spec_of(source: object, **keys: Any) -> DataSpec:
    values = {"source": str(source), "task": "saliency", "size": (12, 16), "every": 2, "splits": SPLITS}
    return DataSpec.model_validate({name: value for name, value in (values | keys).items() if value is not None})


def noise(seed: int, sides: tuple[int, int] = SIDES) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8))


def spot(k: int, sides: tuple[int, int] = SIDES) -> tuple[int, int]:
    """Where people look in frame k."""
    return 5 + k, sides[1] - 6 - 2 * k


def map_of(k: int, sides: tuple[int, int] = SIDES) -> np.ndarray:
    y, x = np.ogrid[: sides[0], : sides[1]]
    top, left = spot(k, sides)
    return np.rint(255 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / 18)).astype(np.uint8)


def points_of(k: int, sides: tuple[int, int] = SIDES) -> np.ndarray:
    marked = np.zeros(sides, np.uint8)
    marked[spot(k, sides)] = 255
    marked[1, 1] = 255
    return marked


def save(folder: Path, name: str, pixels: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(folder / name)


def fill(
    root: Path,
    videos: int = 5,
    frames: int = 6,
    where: Callable[[int], tuple[str, str, str]] = lambda v: (f"v{v}/frames", f"v{v}/maps", f"v{v}/fixations"),
    name: Callable[[int], str] = lambda k: f"{k + 1}.png",
    sides: tuple[int, int] = SIDES,
) -> Path:
    """Videos of noise, with a spot that moves in their maps, and a fixation there and one in the corner."""
    for v in range(videos):
        for k in range(frames):
            images, maps, fixations = (root / place for place in where(v))
            save(images, name(k), noise(100 * v + k, sides))
            save(maps, f"{k + 1:04}.png", map_of(k, sides))
            save(fixations, f"{k + 1:04}.png", points_of(k, sides))
    return root


def stored(root: Path, spec: DataSpec) -> Dataset:
    datasets.write(root, spec)
    return Dataset.open(root)


def refusal(spec: DataSpec) -> str:
    with pytest.raises(KtError) as caught:
        sources.read(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def meta(root: Path) -> Any:
    return json.loads((root / "meta.json").read_text())


# the store


def test_all_frames_are_stored_and_only_targets_have_maps_and_fixations(tmp_path):
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s"), every=4))
    names = ["fixations.npy", "images.npy", "meta.json", "splits.parquet"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    assert (data.images.shape, data.truth.shape) == ((30, 12, 16, 3), (30, 12, 16))
    assert sorted(data.splits["row"]) == [6 * v + 2 for v in range(5)]  # the half of every fourth of six
    assert data.splits["name"].str.endswith("/3.png").all()
    for v in range(5):
        for k in range(6):
            assert np.array_equal(data.images[6 * v + k], fit(noise(100 * v + k), (12, 16), 3))
            shown = np.asarray(Image.fromarray(map_of(k)).resize((16, 12), Image.Resampling.BILINEAR))
            assert np.array_equal(data.truth[6 * v + k], shown if k == 2 else 0 * shown)
    at = [half // 2 for half in spot(2)]
    assert data.fixations.tolist() == [[6 * v + 2, *point] for v in range(5) for point in ([0, 0], at)]
    assert data.videos.first.tolist() == [0, 6, 12, 18, 24]
    facts = datasets.write(tmp_path / "d", spec_of(tmp_path / "s", every=4))
    assert facts["images"] == facts["videos_of"] == {"zoo": 0, **SPLITS}
    assert facts["videos"][1] == {"name": "v1", "first": 6, "frames": 6}
    assert "0 zoo, 3 transfer, 1 validation, 1 test videos of 30 frames" in datasets.summary(facts)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, range(6)), (2, [1, 3, 5]), (3, [1, 4]), (6, [3]), (7, [3]), (8, [4]), (99, [3])]
)
def test_every_nth_frame_with_a_map_is_a_target_and_at_least_the_middle_one(every, expected):
    video = MovingDigits("0", np.arange(10, 16), 0, slice(None))
    from kt.data.videos import targets

    assert targets(video, every).tolist() == [10 + k for k in expected]


def test_targets_of_each_split_are_as_planned(tmp_path):
    root = fill(tmp_path / "s")
    for k in range(4):
        (root / f"v0/maps/{k + 1:04}.png").unlink()
    spec = spec_of(root, every={"transfer": 1, "validation": 3}, splits={**SPLITS, "zoo": 1, "transfer": 2})
    planned = sources.planned_sizes(spec)
    facts = datasets.write(tmp_path / "d", spec)
    assert planned == facts["images"]
    data = Dataset.open(tmp_path / "d")
    assert facts["images"]["test"] == 1  # of default 32
    split_of = data.splits.groupby(data.videos.of(data.splits["row"].to_numpy()))["split"].nunique()
    assert (split_of == 1).all()
    assert len(split_of) == 5
    shorter = data.splits[data.splits["row"] < 6]
    assert set(shorter["row"]) <= {4, 5}
    assert data.splits["image_id"].is_unique


def test_the_hash_covers_frames_maps_fixations_and_splits(tmp_path):
    def changed(name: str, change: Callable[[Path], None] = lambda root: None, **keys: Any) -> str:
        root = fill(tmp_path / name)
        change(root)
        return stored(tmp_path / f"d{name}", spec_of(root, **keys)).hash

    spoilers = {
        "frame": lambda root: noise(7).save(root / "v3/frames/3.png"),
        "map": lambda root: Image.fromarray(map_of(5)).save(root / "v3/maps/0002.png"),
        "fixations": lambda root: Image.fromarray(points_of(5)).save(root / "v3/fixations/0002.png"),
    }
    found = [changed("same"), *(changed(name, change) for name, change in spoilers.items())]
    found += [changed("every", every=3), changed("seed", seed=1)]
    assert changed("again") == found[0]
    assert len(set(found)) == len(found)


def test_an_interrupted_decoding_continues_to_the_same_bytes(tmp_path, monkeypatch):
    spec = spec_of(fill(tmp_path / "s"))
    torn_decoding(spec, tmp_path, monkeypatch, chunk=4 * 12 * 16 * 4, rows=16)


@dataclass(frozen=True)
class Film(Video):
    """A video of 4 MiB, whose frames exist while they are read."""

    def count(self) -> int:
        return 16

    def frames(self, first: int, targets: np.ndarray) -> Iterator[Callable[[], Framed]]:
        for k in range(first, 16):
            picture = np.full((256, 256, 3), k, np.uint8)
            yield partial(Framed, picture, picture[..., 0] + np.arange(256, dtype=np.uint8) if k in targets else None)

    def looks(self, targets: np.ndarray) -> Iterator[Looks]:
        return (Looks(np.array([[1, 2]]), (256, 256)) for _ in targets)


def test_memory_does_not_grow_with_the_number_of_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK_BYTES", 1 << 20)

    def peak(videos: int) -> int:
        films = [Film(str(v), np.arange(16)) for v in range(videos)]
        monkeypatch.setattr(sources, "read", lambda spec: listing_of(films, None, (256, 256, 3)))
        spec = spec_of("moving-digits", size=None, splits={"transfer": videos - 2, "validation": 1, "test": 1})
        tracemalloc.start()
        datasets.write(tmp_path / str(videos), spec)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(4)  # what is loaded on first use
    few, many = peak(4), peak(12)
    assert many - few < 1 << 20  # eight videos of 4 MiB each


# layouts


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (lambda v: (f"v{v}/frames", f"v{v}/maps", f"v{v}/fixations"), lambda k: f"{k + 1:04}.png"),
        (lambda v: (f"v{v}/images", f"v{v}/maps", f"v{v}/fixation"), lambda k: f"Diving-{v_(k)}.png"),
        (lambda v: (f"v{v}/Frames", f"v{v}/map", f"v{v}/fixation/maps"), lambda k: f"img{k + 1}.png"),
        (
            lambda v: (f"frames/{v:03}", f"annotation/{v:04}/maps", f"annotation/{v:04}/fixation"),
            lambda k: f"{k + 1}.png",
        ),
    ],
)
def test_layouts_of_folders(where, name, tmp_path):
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s", where=where, name=name)))
    plain = stored(tmp_path / "e", spec_of(fill(tmp_path / "t")))
    assert np.array_equal(data.images, plain.images)
    assert np.array_equal(data.truth, plain.truth)
    assert np.array_equal(data.fixations, plain.fixations)


def v_(k: int) -> str:
    return f"7-{k + 1:05}"


def test_parts_are_folders_around_videos(tmp_path):
    fill(tmp_path / "s/training", videos=4)
    fill(tmp_path / "s/testing", videos=2)
    (tmp_path / "s/notes").mkdir()
    spec = spec_of(tmp_path / "s", splits={"transfer": 3, "validation": 1, "test": {"part": "testing"}})
    data = stored(tmp_path / "d", spec)
    assert data.videos.names == (*(f"training/v{v}" for v in range(4)), "testing/v0", "testing/v1")
    assert set(data.videos.of(data.rows("test"))) == {4, 5}
    unknown = refusal(spec_of(tmp_path / "s", splits={**SPLITS, "test": {"part": "test"}}))
    assert "no part 'test' in" in unknown
    assert "did you mean 'testing'" in unknown


def test_parts_of_dhf1k_are_numbers(tmp_path):
    numbers = [1, 2, 3, 601, 602]
    where = lambda v: tuple(  # noqa: E731
        place.format(numbers[v]) for place in ("frames/{:04}", "annotation/{:04}/maps", "annotation/{:04}/fixation")
    )
    root = fill(tmp_path / "s", where=where)
    save(root / "frames/0701", "1.png", noise(0))  # its maps are not public
    data = stored(tmp_path / "d", spec_of(root, splits={"transfer": 2, "validation": 1, "test": {"part": "val"}}))
    assert [data.videos.names[v] for v in np.unique(data.videos.of(data.rows("test")))] == ["0601", "0602"]
    assert meta(tmp_path / "d")["left_out"] == {"videos without a map": 1}


def test_a_file_lists_videos_by_name(tmp_path):
    (tmp_path / "test.txt").write_text("v3\nv1\n")
    splits = {"transfer": 2, "validation": 1, "test": {"file": str(tmp_path / "test.txt")}}
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s"), splits=splits))
    assert [data.videos.names[v] for v in data.videos.of(data.rows("test"))[::3]] == ["v3", "v1"]
    (tmp_path / "test.txt").write_text("v3\nv9\n")
    with pytest.raises(KtError, match="1 of its videos are not in the data set: v9"):
        datasets.write(tmp_path / "e", spec_of(tmp_path / "s", splits=splits))


def test_frames_and_maps_are_in_natural_order(tmp_path):
    data = stored(tmp_path / "d", spec_of(fill(tmp_path / "s", frames=12), every=1))
    assert [name.split("/")[1] for name in data.splits["name"][:12]] == [f"{k + 1}.png" for k in range(12)]
    first = data.splits["row"].iloc[0]
    assert (data.truth[first + 11] > 0).any()
    assert np.array_equal(data.images[first + 9], fit(noise(100 * (first // 12) + 9), (12, 16), 3))


@pytest.mark.parametrize(
    ("spoil", "keys", "expected"),
    [
        (lambda root: (root / "v0/maps").rename(root / "v0/mapps"), {}, ""),
        (lambda root: save(root / "v1/maps", "0007.png", map_of(0)), {}, "1 maps without a frame in v1: 0007.png;"),
        (lambda root: save(root / "v1/maps", "2.tif", map_of(0)), {}, "v1/maps: two of one number: "),
        (lambda root: save(root / "v1/frames", "2.tif", noise(0)), {}, "v1/frames: two of one number: "),
        (
            lambda root: [
                path.rename(path.with_name(f"0{int(path.stem) - 1}.png"))
                for path in sorted((root / "v2/frames").iterdir())
            ],
            {},
            "frames and maps begin with different numbers: 00.png, 0001.png; give them the same names",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(spoil, keys, expected, tmp_path):
    root = fill(tmp_path / "s", videos=6)
    spoil(root)
    if expected:
        assert expected in refusal(spec_of(root, **keys))
    else:
        assert sources.read(spec_of(root, **keys)).names == [f"v{v}" for v in range(1, 6)]


def test_hidden_files_other_files_and_links_do_no_harm(tmp_path):
    root = fill(tmp_path / "s", videos=6, name=lambda k: f"{k + 1}.PNG")
    for kind in ("frames", "maps", "fixations"):
        (root / f"v0/{kind}/._0001.png").write_bytes(b"of macOS")
        (root / f"v0/{kind}/Thumbs.db").write_bytes(b"of Windows")
    (root / ".cache/maps").mkdir(parents=True)
    (root / "annotation/maps").mkdir(parents=True)
    (root / "v4/frames/1.PNG").rename(tmp_path / "same.png")
    (root / "v5/frames/1.PNG").unlink()
    for v in (4, 5):
        (root / f"v{v}/frames/1.PNG").symlink_to(tmp_path / "same.png")  # as stores of files by content do
    (root / "v1").rename(tmp_path / "elsewhere")
    (root / "v1").symlink_to(tmp_path / "elsewhere")
    (root / "v2/back").symlink_to(root)
    (root / "v3").rename(root / "v\n3")
    data = stored(tmp_path / "d", spec_of(root, splits={**SPLITS, "transfer": 4}))
    assert data.videos.names == ("v0", "v1", "v2", "v4", "v5", "v\\x0a3")
    assert len(data.images) == 36
    (root / "v6").symlink_to(root / "v5")
    assert "v5 and v6 are the same video by a link; remove one" in refusal(spec_of(root))


@pytest.mark.parametrize("folders", [[], ["a"], ["a/frames"], ["maps/v0", "frames/v0"]])
def test_a_folder_without_videos_is_refused(folders, tmp_path):
    for name in ["", *folders]:
        (tmp_path / "s" / name).mkdir(parents=True, exist_ok=True)
    assert "needs a folder per video with its maps or map" in refusal(spec_of(tmp_path / "s"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"classes": ("a", "b")}, "data.classes: is about classes, which the task 'saliency' does not have"),
        ({"num_classes": 3}, "data.num_classes: is about classes"),
        ({"label_key": "x"}, "data.label_key: is about classes"),
        ({"masks": "m"}, "data.masks: is about masks"),
        ({"ignore": 0}, "data.ignore: is about masks"),
        ({"class_order": "sorted"}, "data.class_order: 'sorted' orders class folders, but videos have none"),
        ({"size": None}, "data.size: needed"),
        ({"splits": {**SPLITS, "transfer": {"folder": "."}}}, "data.splits.transfer.folder: its images are no frames"),
        ({"source": "digits"}, "data.source: 'digits' has no videos.*allowed: moving-digits, a folder"),
        ({"source": "torch/voc"}, "data.source: 'torch/voc' has no videos"),
        ({"source": "moving-digits", "fit": "contain", "size": None}, "data.fit: 'contain' needs data.size"),
        ({"source": "moving-digits", "task": "classification", "every": None}, "has videos; set data.task: saliency"),
        ({"source": "moving-digits", "task": "segmentation", "every": None}, "has videos; set data.task: saliency"),
        (
            {"source": "digits", "task": "classification"},
            "data.every: is about videos, which the task 'classification'",
        ),
        ({"source": "scenes", "task": "segmentation"}, "data.every: is about videos, which the task 'segmentation'"),
    ],
)
def test_keys_that_make_no_sense_are_refused_in_one_line(keys, expected, tmp_path):
    spec = spec_of(keys.get("source", fill(tmp_path / "s", 1, 1)), **{k: v for k, v in keys.items() if k != "source"})
    assert re.search(expected, refusal(spec))


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "2", [2], {"test": 0}, {"all": 2}])
def test_every_is_a_number_or_one_for_each_split(every):
    with pytest.raises(ValueError, match=r"every|unknown key"):
        spec_of("moving-digits", every=every)


def test_splits_count_videos(tmp_path):
    with pytest.raises(KtError, match=r"7 videos asked for .*but the data set has 5"):
        datasets.write(tmp_path / "d", spec_of(fill(tmp_path / "s"), splits={**SPLITS, "transfer": 5}))


# files


def write_mat(folder: Path, k: int, **arrays: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / f"{k + 1:04}.mat", arrays)


@pytest.mark.parametrize("inside", ["fixation", "fixation/maps"])
@pytest.mark.parametrize("form", [lambda p: p, lambda p: p.astype(np.float64), csc_matrix, lambda p: p > 0])
def test_fixations_in_matlab_files_are_those_of_images(inside, form, tmp_path):
    root = fill(tmp_path / "s")
    for v in range(5):
        for k in range(6):
            (root / f"v{v}/fixations/{k + 1:04}.png").unlink()
            write_mat(root / f"v{v}" / inside, k, I=form(points_of(k)), note="seen", n=np.arange(3))
        (root / f"v{v}/fixations").rmdir()
    found = stored(tmp_path / "d", spec_of(root)).fixations
    assert np.array_equal(found, stored(tmp_path / "e", spec_of(fill(tmp_path / "t"))).fixations)


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def as_matlab(**arrays: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for other in path.parent.iterdir():
            other.unlink()
        write_mat(path.parent, 3, **arrays)

    return spoil


@pytest.mark.parametrize(
    ("kind", "spoil", "reason"),
    [
        ("frames", broken, r"4.png \("),
        ("frames", lambda path: noise(0, (24, 30)).save(path), "24×30 pixels, but the first frame of its video has"),
        ("frames", lambda path: path.write_bytes(b""), "an empty file"),
        ("maps", broken, "its map: "),
        ("maps", lambda path: Image.fromarray(map_of(3, (12, 16))).save(path), "its map has 12×16 pixels, the frame"),
        ("maps", lambda path: noise(0).save(path), "its map: colours, not a grey map"),
        (
            "maps",
            lambda path: Image.fromarray(-map_of(3).astype("f4")).save(path, "TIFF"),
            "its map has values below 0",
        ),
        (
            "maps",
            lambda path: Image.fromarray(map_of(3).astype(np.uint16)).save(path, "TIFF", tiffinfo={262: 0}),
            "its map: a TIFF file with white as zero",
        ),
        ("fixations", broken, "its fixations: "),
        ("fixations", lambda path: Image.fromarray(points_of(3)).save(path, "JPEG"), "its fixations: a JPEG file"),
        ("fixations", lambda path: Image.fromarray(points_of(3, (12, 16))).save(path), "its fixations are on 12×16"),
        ("fixations", lambda path: Image.fromarray(map_of(3)).save(path), r"fixations are \d+ of 768 pixels; .* a map"),
        ("fixations", as_matlab(I=np.eye(3)), r"needs one array of numbers \[24, 32\].*it holds: I \[3, 3\]"),
        ("fixations", as_matlab(a=points_of(3), b=points_of(3)), r"it holds: a \[24, 32\], b \[24, 32\]"),
    ],
)
def test_a_damaged_file_damages_its_video(kind, spoil: Callable[[Path], None], reason, tmp_path):
    root = fill(tmp_path / "s", videos=8)
    number = "4" if kind == "frames" else "0004"
    spoil(root / f"v2/{kind}/{number}.png")
    spec = spec_of(root, splits={"transfer": 6, "validation": 1, "test": 1})
    with pytest.raises(KtError, match=rf"damaged videos: 1 of 8, mend them, .*: v2.*{reason}") as caught:
        datasets.write(tmp_path / "d", spec)
    assert "\n" not in str(caught.value)
    with pytest.raises(KtError, match=r"damaged videos: 1 of 8, more than data.max_damaged \(0.01\) allows: v2"):
        datasets.write(tmp_path / "d", spec.model_copy(update={"damaged": "skip"}))
    facts = datasets.write(tmp_path / "d", spec.model_copy(update={"damaged": "skip", "max_damaged": 0.2}))
    assert facts["left_out"] == {"damaged videos": 1}
    data = Dataset.open(tmp_path / "d")
    assert [name for name in data.videos.names if name == "v2"] == []
    assert len(data.videos.names) == 7
    assert not data.splits["name"].str.startswith("v2/").any()
    at = data.videos.first[data.videos.names.index("v6")]
    assert np.array_equal(data.images[at + 5], fit(noise(605), (12, 16), 3))
    assert np.isin(data.fixations[:, 0], data.splits["row"]).all()


@pytest.mark.parametrize(
    "form",
    [
        lambda m: Image.fromarray(m.astype(np.uint16) * 257),
        lambda m: Image.fromarray(m.astype(np.uint16) * 3),
        lambda m: Image.fromarray(m).convert("RGB"),
        lambda m: Image.fromarray(m).convert("RGBA"),
        lambda m: Image.fromarray(m).convert("LA"),
    ],
)
def test_maps_are_grey_of_any_depth(form, tmp_path):
    from kt.data.video_files import map_in

    form(map_of(2)).save(tmp_path / "m.png")
    assert np.array_equal(map_in(str(tmp_path / "m.png"), SIDES), map_of(2))


def test_frames_of_an_even_map_are_no_targets(tmp_path):
    root = fill(tmp_path / "s")
    for v, value in ((0, 0), (1, 9)):
        Image.fromarray(np.full(SIDES, value, np.uint8)).save(root / f"v{v}/maps/0002.png")
    facts = datasets.write(tmp_path / "d", spec_of(root))
    assert facts["left_out"] == {"frames of an even map": 2}
    assert sum(facts["images"].values()) == 13
    assert sum(facts["videos_of"].values()) == 5


def test_fixations_may_be_missing(tmp_path, caplog):
    root = fill(tmp_path / "s")
    (root / "v0/fixations/0002.png").unlink()
    assert len(stored(tmp_path / "d", spec_of(root)).fixations) == 2 * 14
    for v in range(5):
        (root / f"v{v}/fixations").rename(root / f"v{v}/other")
    assert stored(tmp_path / "e", spec_of(root)).fixations.shape == (0, 3)
    assert "no frame has a fixation" in caplog.text


# geometry


@settings(max_examples=100, deadline=None)
@given(
    sides=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    size=st.one_of(st.integers(4, 60), st.tuples(st.integers(4, 60), st.integers(4, 60))),
    contain=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fixations_have_the_geometry_of_their_frame(sides, size, contain, seed):
    """Where the stored frame is no smaller, the pixel that shows a fixation is of the fixation's pixel."""
    generator = np.random.default_rng(seed)
    points = np.stack([generator.integers(0, side, 5) for side in sides], 1)
    place = place_of(sides, size, contain)
    numbers = np.arange(np.prod(sides), dtype=np.uint16).reshape(sides) % 251
    shown = fit(Masked(np.zeros((*sides, 1), np.uint8), numbers.astype(np.uint8)), size, 1, contain)[..., -1]
    found = placed(points, sides, size, contain)
    inside = [placed(point[None], sides, size, contain) for point in points]
    assert np.array_equal(found, np.concatenate(inside))
    assert contain <= (len(found) == 5)
    for point, at in zip(points, inside, strict=True):
        assert (at >= 0).all()
        if len(at) and place.height >= sides[0] and place.width >= sides[1]:
            assert shown[tuple(at[0])] == numbers[tuple(point)]


@pytest.mark.parametrize("size", [(12, 16), (24, 24), (20, 12), 9, (30, 70)])
@pytest.mark.parametrize("contain", ["cover", "contain"])
def test_frame_map_and_fixation_lie_on_each_other(size, contain, tmp_path):
    root = tmp_path / "s"
    for v in range(5):
        for folder in ("frames", "maps"):
            save(root / f"v{v}" / folder, "1.png", map_of(2, (40, 60)))
        save(root / f"v{v}/fixations", "1.png", np.where(map_of(2, (40, 60)) == 255, 255, 0).astype(np.uint8))
    data = stored(tmp_path / "d", spec_of(root, size=size, fit=contain))
    assert len(data.fixations) == 5 if contain == "contain" else len(data.fixations) in (0, 5)
    for row, y, x in data.fixations:
        for shown in (data.images[row, ..., 0], data.truth[row]):
            assert shown[y, x] >= 0.8 * shown.max()


# video files


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Five videos in files without loss, and the same ones as folders of frames."""
    av = pytest.importorskip("av", reason="video files are read with PyAV")
    root = fill(tmp_path_factory.mktemp("films") / "s")
    for v in range(5):
        with av.open(str(root / f"v{v}.AVI"), "w") as film:
            stream = film.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = SIDES[1], SIDES[0], "bgr0"
            for k in range(6):
                film.mux(stream.encode(av.VideoFrame.from_image(Image.open(root / f"v{v}/frames/{k + 1}.png"))))
            film.mux(stream.encode())
    return root


def arranged(films: Path, root: Path, place: str, notes: str, first: int = 1) -> Path:
    """The video files at places of their own, maps and fixations in other folders, numbered from ``first``."""
    for v in range(5):
        target = root / place.format(v)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((films / f"v{v}.AVI").read_bytes())
        for kind in ("maps", "fixations"):
            folder = root / notes.format(v) / kind
            folder.mkdir(parents=True)
            for k in range(6):
                (folder / f"{k + first:04}.png").write_bytes((films / f"v{v}/{kind}/{k + 1:04}.png").read_bytes())
    return root


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("place", "notes"),
    [
        ("v{}.avi", "v{}"),
        ("v{}/film.AVI", "v{}"),
        ("video/{:03}.AVI", "annotation/{:04}"),
        ("videos/a{}.mkv", "annotation/a{}"),
    ],
)
def test_video_files_are_as_folders_of_frames(first, place, notes, films, tmp_path):
    data = stored(tmp_path / "d", spec_of(arranged(films, tmp_path / "s", place, notes, first)))
    plain = stored(tmp_path / "e", spec_of(fill(tmp_path / "t")))
    assert np.array_equal(data.images, plain.images)
    assert np.array_equal(data.truth, plain.truth)
    assert np.array_equal(data.fixations, plain.fixations)
    assert data.splits["name"].iloc[0].rpartition("/")[2] == str(1 + first)


def test_video_files_may_be_grey_and_contained(films, tmp_path):
    keys = {"channels": 1, "size": (9, 30), "fit": "contain"}
    data = stored(tmp_path / "d", spec_of(arranged(films, tmp_path / "s", "v{}.avi", "v{}"), **keys))
    plain = stored(tmp_path / "e", spec_of(fill(tmp_path / "t"), **keys))
    assert np.array_equal(data.images, plain.images)
    assert np.array_equal(data.fixations, plain.fixations)


def test_a_video_that_players_turn_is_stored_upright(tmp_path):
    av = pytest.importorskip("av", reason="video files are read with PyAV")
    raw = np.zeros((32, 24, 3), np.uint8)
    raw[:8, :8] = 255  # at the bottom left, once it is turned by a quarter against the clock
    (tmp_path / "s").mkdir()
    for v in range(5):
        with av.open(str(tmp_path / f"s/v{v}.mp4"), "w") as film:
            stream = film.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 24, 32, "yuv444p"
            stream.set_display_rotation(90)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(raw)))
            film.mux(stream.encode())
        save(tmp_path / f"s/v{v}/maps", "1.png", map_of(0))
    data = stored(tmp_path / "d", spec_of(tmp_path / "s", size=(24, 32)))
    shown = data.images[0, ..., 0] > 128
    assert np.abs(np.argwhere(shown).mean(0) - (19.5, 3.5)).max() < 0.6
    assert abs(shown.sum() - 64) < 9


def test_a_decoding_of_video_files_continues_inside_one(films, tmp_path, monkeypatch):
    spec = spec_of(arranged(films, tmp_path / "s", "v{}.avi", "v{}"))
    monkeypatch.setattr(decode, "CHUNK_BYTES", 4 * 12 * 16 * 4)
    listing = sources.read(spec)
    frames = frames_of(listing, divided(listing, spec), spec, 1).listing
    every = [fit(call(), spec.size, 3) for call in frames.stream(np.arange(30))]
    later = [fit(call(), spec.size, 3) for call in frames.stream(np.arange(15, 30))]
    assert np.array_equal(every[15:], later)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda film: film.write_bytes(b"no video at all"), r"v2 \("),
        (lambda film: film.write_bytes(film.read_bytes()[:9000]), "frames, but there is a map of"),
        (lambda film: film.write_bytes(b""), r"v2 \("),
    ],
)
def test_a_damaged_video_file_is_named(spoil, reason, films, tmp_path):
    root = arranged(films, tmp_path / "s", "v{}.avi", "v{}")
    spoil(root / "v2.avi")
    with pytest.raises(KtError, match=f"damaged videos: 1 of 5, mend them, .*: .*{reason}") as caught:
        datasets.write(tmp_path / "d", spec_of(root))
    assert "\n" not in str(caught.value)
    facts = datasets.write(
        tmp_path / "d",
        spec_of(root, damaged="skip", max_damaged=0.3, splits={"transfer": 0.4, "validation": 0.2, "test": 0.4}),
    )
    assert facts["left_out"] == {"damaged videos": 1}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: (root / "v1.avi").rename(root / "v0.mkv"), "two of one name: v0.avi, v0.mkv; keep one"),
        (
            lambda root: save(root / "v1/maps", "0000.png", map_of(0)),
            "maps of v1 are numbered from 0, those of v0 are not",
        ),
        (lambda root: save(root / "v1/maps", "last.png", map_of(0)), "1 maps without a frame in v1: last.png"),
    ],
)
def test_video_files_that_do_not_fit_are_named(spoil, expected, films, tmp_path):
    root = arranged(films, tmp_path / "s", "v{}.avi", "v{}")
    spoil(root)
    assert expected in refusal(spec_of(root))


def test_two_videos_of_one_number_are_refused(films, tmp_path):
    root = arranged(films, tmp_path / "s", "video/{:03}.AVI", "annotation/{:04}")
    (root / "video/004.AVI").rename(root / "video/01.AVI")
    assert "video: two of one number: 001.AVI, 01.AVI; keep one" in refusal(spec_of(root))


def test_without_pyav_video_files_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for v in range(5):
        save(tmp_path / f"s/v{v}/maps", "1.png", map_of(0))
        (tmp_path / f"s/v{v}.mp4").write_bytes(b"")
    with pytest.raises(
        KtError, match=r"data.source: .*v0\.mp4: needs the package `av`; install it, or give the frames"
    ):
        datasets.write(tmp_path / "d", spec_of(tmp_path / "s"))


def test_damage_is_named_also_where_it_leaves_a_split_empty(tmp_path):
    root = fill(tmp_path / "s")
    for v in range(5):
        (root / f"v{v}/fixations/0002.png").write_bytes(b"")
    with pytest.raises(KtError, match="damaged videos: 5 of 5, mend them"):
        datasets.write(tmp_path / "d", spec_of(root))


def test_a_video_file_of_git_lfs_is_refused(films, tmp_path):
    root = arranged(films, tmp_path / "s", "v{}.avi", "v{}")
    (root / "v2.avi").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(KtError, match=r"v2\.avi: a Git LFS pointer"):
        datasets.write(tmp_path / "d", spec_of(root))


# moving digits


def test_moving_digits_are_planned_and_always_the_same(tmp_path):
    splits = {"zoo": 3, "transfer": 2, "validation": 2, "test": {"part": "test", "images": 2}}
    spec = spec_of("moving-digits", size=None, every=4, splits=splits)
    assert datasets.split_sizes(tmp_path / "d", spec) == {"zoo": 9, "transfer": 6, "validation": 6, "test": 6}
    facts = datasets.write(tmp_path / "d", spec)
    assert facts["images"] == datasets.split_sizes(tmp_path / "d", spec)
    assert facts["hash"] == datasets.write(tmp_path / "e", spec, threads=3)["hash"]
    data = Dataset.open(tmp_path / "d")
    assert (data.images.shape, len(data.fixations)) == ((144, 32, 32, 3), 27 * moving.LOOKS)
    assert {int(name) < moving.VIDEOS["train"] for name in data.splits["name"].str.split("/").str[0]} == {True, False}


def test_only_the_digit_that_the_map_shows_moves(monkeypatch):
    monkeypatch.setattr(moving, "NOISE", 0)
    digits = moving.digits()
    for number in range(20):
        film = made(np.random.default_rng(number), digits[:1300])
        change = np.abs(np.diff(film.frames.astype(int), axis=0)).sum(-1)
        for k in range(1, moving.FRAMES):
            peak = np.array(np.unravel_index(film.maps[k].argmax(), film.maps[k].shape))
            if k < moving.REST:
                assert film.maps[k].max() == change[k - 1].max() == 0
            else:
                moved = np.argwhere(change[k - 1] > 8)
                assert (moved // moving.CELL == peak // moving.CELL).all()
                assert film.maps[k].max() > 240
                far = np.linalg.norm(film.fixations[k] - peak, axis=1)
                assert far.mean() < 3 * moving.SPREAD


def test_a_still_frame_does_not_tell_what_moves():
    """Digits that move and digits that rest are as bright, as many, and at the same places on average."""
    digits = moving.digits()
    films = [made(np.random.default_rng([2, number]), digits[:1300]) for number in range(60)]
    places = np.array([np.unravel_index(film.maps[k].argmax(), (32, 32)) for film in films for k in range(2, 16)])
    assert np.abs(np.bincount(places[:, 0] // 16 * 2 + places[:, 1] // 16) / len(places) - 0.25).max() < 0.1
    inside = places % 16
    assert np.abs(inside.mean(0) - 7.5).max() < 0.7
