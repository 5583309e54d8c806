"""Any folder is a data set or is refused in one line, and no picture is in two splits without a warning."""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from images import spec_of
from PIL import Image

from kt.data import datasets
from kt.data.datasets import Dataset
from kt.errors import KtError

WORDS = [
    "a", "A", "1", "01", "①", "A5²", "é", "e\u0301", "two\nlines", " x ", "train", "Train", "training", "val", "test",
    "validation", "@eaDir", ".ipynb_checkpoints", "__MACOSX", "n10", "n2", os.fsdecode(b"caf\xe9"), "-", "$HOME", "%s",
    "{x}", "\\", "ﬁ", "İ", "٣", "a,b", "#", "~",
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(WORDS),
    st.binary(min_size=1, max_size=6)
    .filter(lambda b: not {0, 47} & set(b) and b not in (b".", b".."))
    .map(os.fsdecode),
)
PLACES = st.lists(NAMES, max_size=3).map(tuple)
ENDINGS = st.sampled_from([".png", ".JPG", ".tif", ".bmp", ".gif", ".webp", "", ".txt", ".heic", ".pgm"])
MODES = st.sampled_from(["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16", "I", "F", "YCbCr"])
LFS = b"version https://git-lfs.github.com/spec/v1\n"
JUNK = [b"", b"P5 junk", b"/annex/objects/x", b"\x89PNG\r\n\x1a\n\0\0", b"GIF89a", LFS]
TARGETS = ["..", ".", "/", "../..", "../a", "gone", "self", "../train", "../val/a"]
CONTENT = st.one_of(
    st.tuples(st.just("image"), MODES, st.integers(0, 9), st.sampled_from([(5, 9), (9, 5), (1, 40), (8, 8)])),
    st.tuples(st.just("bytes"), st.sampled_from(JUNK)),
    st.tuples(st.just("link"), st.sampled_from(TARGETS)),
    st.tuples(st.just("pipe")),
)
FILES = st.lists(st.tuples(PLACES, NAMES, ENDINGS, CONTENT), max_size=14)
REGULAR = st.lists(  # class folders, so that many examples are data sets
    st.tuples(
        st.sampled_from(["a", "A", "é", "①", "n10", "n2"]),
        st.sampled_from(["x", "X", "01", "1", "two\nlines", "é", "e\u0301"]),
        st.tuples(st.just("image"), st.sampled_from(["RGB", "L", "P"]), st.integers(0, 9), st.just((8, 8))),
    ).map(lambda found: ((found[0],), found[1], ".png", found[2])),
    min_size=4,
    max_size=14,
)


def put(path: str, kind: str, *what: object) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "image":
        mode, seed, size = what
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        with open(path, "xb") as file:
            try:
                picture.convert("L" if mode == "I;16" else mode).convert(mode).save(file, "TIFF")
            except (ValueError, OSError):
                picture.save(file, "PNG")
    elif kind == "bytes":
        Path(path).write_bytes(what[0])
    elif kind == "link":
        os.symlink(os.path.basename(path) if what[0] == "self" else what[0], path)
    else:
        os.mkfifo(path)


def attempt(root: Path, splits: dict[str, object], damaged: str) -> str:
    """The hash of the data set, or the one line that refuses it; the folder itself is called `s`."""
    spec = spec_of(root / "s", size=6, splits=splits, damaged=damaged, max_damaged=1.0)
    try:
        facts = datasets.write(root / "store", spec, 2)
    except KtError as error:
        line = str(error)
    else:
        check(Dataset.open(root / "store"), facts)
        line = datasets.summary(facts)
    assert "\n" not in line
    return line.encode().decode().replace(str(root), "")


def check(data: Dataset, facts: dict[str, object]) -> None:
    """Splits share no image; those whose pixels are the same are counted, by a slow comparison of all with all."""
    splits = data.splits
    assert splits["image_id"].is_unique
    assert splits["label"].between(0, data.classes - 1).all()
    frame = list(
        zip(splits["split"], splits["label"], [data.images[row].tobytes() for row in splits["row"]], strict=True)
    )
    repeated, mixed = set[int](), set[int]()
    for (i, one), (j, two) in itertools.combinations(enumerate(frame), 2):
        if one[2] == two[2]:
            repeated |= {i, j} if one[0] != two[0] else set()
            mixed |= {i, j} if one[1] != two[1] else set()
    assert facts["repeated"] == {"splits": len(repeated), "classes": len(mixed)}


@given(
    st.one_of(FILES, REGULAR, st.tuples(REGULAR, FILES).map(lambda both: both[0] + both[1])),
    st.sampled_from([{"transfer": 2, "validation": 1, "test": 1}, {"transfer": 0.4, "validation": 0.3, "test": 0.3},
                     {"transfer": 1, "validation": 1, "test": {"part": "val"}}]),
    st.sampled_from(["fail", "skip"]),
)  # fmt: skip
@example([(("a",), "x", ".png", ("link", "self"))], {"transfer": 1, "validation": 1, "test": 1}, "fail")
@example(
    [*(((name,), "x", ".png", ("image", "L", seed, (8, 8))) for seed, name in enumerate(["a", "A", "b"])),
     ((os.fsdecode(b"\xe9"),), "x", ".png", ("bytes", LFS))],
    {"transfer": 2, "validation": 1, "test": 1}, "fail",
)  # fmt: skip
def test_a_folder_is_a_data_set_or_is_refused_in_one_line(files, splits, damaged):
    distinct = {(*place, name + ending): content for place, name, ending, content in files}
    outcomes = list[tuple[set[str], str]]()
    for order in (list(distinct), list(distinct)[::-1]):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "s").mkdir()
            written = set[str]()
            for path in order:
                with suppress(OSError):  # a file where a folder should be, or a name that is no name here
                    put(os.path.join(root, "s", *path), *distinct[path])
            for place, folders, names in os.walk(root / "s"):
                written |= {os.path.join(place, name).removeprefix(folder) for name in folders + names}
            outcomes.append((written, attempt(root, splits, damaged)))
    if outcomes[0][0] == outcomes[1][0]:  # the same tree, made in another order
        assert outcomes[0] == outcomes[1]
