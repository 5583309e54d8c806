"""The ``data`` section of the configuration: where a data set comes from, its classes and its splits."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError

from kt.data.seen import Size
from kt.errors import quoted
from kt.spec import File, Folder, Place, Seed, Spec, as_written

SPLITS = ("zoo", "transfer", "validation", "test")

BUILTIN = ("digits", "scenes", "moving-digits")
"""Data sets that need no file."""

TIMM_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
"""Kinds of data sets that ``timm.data.create_dataset`` reads by the first part of their name."""

MOST_CLASSES = 1_000_000
"""Upper bound of labels; a larger number is not a label."""

Label = Annotated[int, Field(ge=0, lt=MOST_CLASSES)]

MOST_IDS = 1 << 16
"""Upper bound of ids in masks, of 16 bits."""

Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


def _several(value: Any) -> Any:
    """One id as several, of a list too."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Ids = Annotated[tuple[Id, ...], BeforeValidator(_several, json_schema_input_type=Id | tuple[Id, ...])]
"""An id in masks, or several."""

Share = Annotated[float, Field(gt=0, lt=1)]


def _short_forms(schema: JsonSchemaValue) -> None:
    """A whole number or a share may stand for the object."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [
        {"type": "integer", "minimum": 0},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        whole,
    ]


def _list_or_mapping(schema: JsonSchemaValue) -> None:
    """A list of classes may stand for a mapping."""
    schema["anyOf"].insert(0, {"type": "array", "items": {"type": ["string", "integer"]}})


def _place_or_name(source: str, info: ValidationInfo) -> str:
    """The path of a file or folder, or the name of a data set as it is."""
    named = source in BUILTIN or source.partition("/")[0].lower() in TIMM_PREFIXES
    return source if named and not source.endswith((".npz", ".tar")) else Place.read(source, info)


Source = Annotated[str, AfterValidator(_place_or_name), PlainSerializer(as_written, return_type=str)]


class Take(Spec, json_schema_extra=_short_forms):
    """The images of one split: `500`, the share `0.1`, an official part, those of a file, or an unlabelled folder.

    Of `saliency` these are videos, never frames.
    """

    images: NonNegativeInt | None = Field(None, description="number of images, or of videos")
    share: Share | None = Field(None, description="share of the images to draw from, e.g. 0.1")
    part: str | None = Field(
        None,
        description="official part to draw from, e.g. `val`; alone it means all that is left of it; default: `train`",
    )
    file: File | None = Field(None, description="text file with one name of an image per line")
    folder: Folder | None = Field(
        None,
        description="folder of images without labels, at any depth, to draw from; only for `transfer`",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, float):
            return {"share": value}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"images": value}
        if isinstance(value, dict | Take):
            return value
        text = f"input should be a number of images, a share, or a mapping of keys to values, not {quoted(value)}"
        raise PydanticCustomError("value_error", "{text}", {"text": text})

    @model_validator(mode="after")
    def _one_way(self) -> Take:
        ways = [name for name in ("images", "share", "file") if getattr(self, name) is not None]
        if len(ways) > 1 or not (ways or self.part or self.folder):
            raise PydanticCustomError("value_error", "give one of images, share or file, or a part of the data set")
        if self.folder and (self.part or self.file):
            raise PydanticCustomError("value_error", "folder: its images are in no part or file of the data set")
        return self

    @property
    def rest(self) -> bool:
        """Whether the split takes all that the others leave of its part."""
        return self.images is None and self.share is None and self.file is None


class SplitSizes(Spec):
    """Images of each split; no image is in two splits."""

    zoo: Take = Field(Take(images=0), description="images that train zoo members without weights")
    transfer: Take = Field(description="images that knowledge is transferred on")
    validation: Take = Field(description="images that choose epochs and pairs")
    test: Take = Field(description="images that every reported number is measured on")

    @model_validator(mode="after")
    def _not_empty(self) -> SplitSizes:
        for name in SPLITS[1:]:
            if getattr(self, name).images == 0:
                raise PydanticCustomError("value_error", "{name}: needs at least one image", {"name": name})
        for name, take in self.takes().items():
            if take.folder and name != "transfer":
                text = "{name}.folder: its images have no labels; allowed for transfer alone"
                raise PydanticCustomError("value_error", text, {"name": name})
        return self

    def takes(self) -> dict[str, Take]:
        """Images of each split, by its name."""
        return {name: getattr(self, name) for name in SPLITS}

    def known(self, split: str) -> int | None:
        """Number of images of a split where the configuration gives it; None for shares, parts and files."""
        images: int | None = self.takes()[split].images
        return images


def class_names(given: Iterable[Any]) -> list[str]:
    """Names of classes as folders have them; whole numbers stand for their digits.

    Raises:
        ValueError: a name is given twice, or is neither text nor a whole number.
    """
    names = list[str]()
    for name in given:
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise ValueError(f"{name!r} is no name of a class; quote it as its folder is called")
        names.append(unicodedata.normalize("NFC", str(name)))
        if names[-1] in names[:-1]:
            raise ValueError(f"a class is listed twice: {names[-1]!r}")
    return names


def counted(classes: int, ignored: Sequence[int] | None) -> list[int]:
    """The first labels from 0 that are not ignored ids in masks."""
    return list(itertools.islice((label for label in itertools.count() if label not in (ignored or ())), classes))


def _one_for_all(schema: JsonSchemaValue) -> None:
    """A whole number may stand for the object."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "integer", "exclusiveMinimum": 0}, whole]


class Every(Spec, json_schema_extra=_one_for_all):
    """Every how many frames with a map one is a target; a number stands for that of all splits."""

    zoo: PositiveInt = Field(8, description="of videos that train zoo members")
    transfer: PositiveInt = Field(8, description="of videos that knowledge is transferred on")
    validation: PositiveInt = Field(32, description="of videos that choose epochs and pairs")
    test: PositiveInt = Field(32, description="of videos that every reported number is measured on")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, dict | Every):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return dict.fromkeys(SPLITS, value)
        text = f"input should be a whole number greater than 0, or a mapping from split to number, not {quoted(value)}"
        raise PydanticCustomError("value_error", "{text}", {"text": text})

    def of(self, split: str) -> int:
        """That of a split."""
        found: int = getattr(self, split)
        return found


DEFAULT_TASK = "classification"


class DataSpec(Spec):
    """Source of the images, their splits, and the form in which they are stored."""

    source: Source = Field(
        description="`digits` (ships with scikit-learn); an .npz file with `images` and `labels`; a folder of class "
        "folders, or of official parts (`train`, `val`, …) that hold class folders; or a name that "
        "`timm.data.create_dataset` reads: `torch/cifar10`, `hfds/…`, `hfids/…`, `tfds/…`, `wds/…`, a .tar file; "
        "as all paths relative to this file's folder. For `segmentation`: `scenes` (made of these digits); a folder "
        "with `images` and `masks`; an .npz file with both; `torch/voc` or `torch/cityscapes`, which lie in `root`. "
        "For `saliency`: `moving-digits`, or a folder with a folder of frames and maps per video"
    )
    task: str = Field(
        DEFAULT_TASK,
        description="what is learnt: `classification`, `segmentation`, `saliency`, or a task that one of `zoo.modules` "
        "defines",
    )
    masks: str | None = Field(
        None,
        min_length=1,
        description="name beside `images` under which their masks lie; default: `masks`, or `annotations`",
    )
    ignore: Ids | None = Field(None, description="id in masks, or list of ids, of pixels without a class; default: 255")
    root: Folder | None = Field(None, description="folder where timm finds the data set, or keeps it")
    download: bool = Field(False, description="let timm download the data set into `root`")
    size: Size | None = Field(
        None,
        description="side of the stored square images, pixels, or [height, width]: images are resized (bicubic) until "
        "they just cover it, and the centre is kept; needed where images have different sizes; default: as they are",
    )
    fit: Literal["cover", "contain"] = Field(
        "cover",
        description="`contain` keeps the whole image, for `segmentation` and `saliency`: what lies beside it is black, "
        "of no class and not salient",
    )
    image_key: str | None = Field(
        None, description="column of the images of `hfds/…`, `hfids/…`, `tfds/…` and `wds/…`; default: `image` (timm's)"
    )
    label_key: str | None = Field(
        None, description="column of the labels of `hfds/…`, `hfids/…`, `tfds/…` and `wds/…`; default: `label` (timm's)"
    )
    channels: Literal[1, 3] = Field(3, description="1 stores images of folders and timm data sets in grey")
    classes: dict[str, Label] | None = Field(
        None,
        description="classes to take: a list in the order of their labels, or a mapping from class to label; "
        "default: all classes of the source, in the order of `class_order`. For `segmentation` labels are ids in the "
        "masks; a list counts them from 0, without those of `ignore`",
        json_schema_extra=_list_or_mapping,
    )
    class_file: File | None = Field(
        None, description="the same as a file: .txt with one class per line, or a list or mapping in .yaml or .json"
    )
    class_order: Literal["natural", "sorted"] = Field(
        "natural",
        description="labels of class folders: `natural` counts class2 before class10, as timm does, `sorted` is plain "
        "sorting, as torchvision's `ImageFolder` does",
    )
    num_classes: PositiveInt | None = Field(
        None,
        le=MOST_CLASSES,
        description="number of classes, where the images do not have the last ones; default: largest label + 1",
    )
    damaged: Literal["fail", "skip"] = Field(
        "fail", description="what happens to images that cannot be decoded: an error, or left out and named in the log"
    )
    max_damaged: float = Field(0.01, ge=0, le=1, description="share of damaged images beyond which `skip` fails, too")
    seed: Seed = Field(0, description="seed of the shuffle before the split")
    every: Every | None = Field(
        None,
        description="for `saliency`: every how many frames with a map one is learnt from, or tested on; a number for "
        "all splits, or for some of them; default: 8 for `zoo` and `transfer`, 32 for `validation` and `test`",
    )
    splits: SplitSizes

    @field_validator("classes", mode="before")
    @classmethod
    def _numbered(cls, value: Any, info: ValidationInfo) -> Any:
        """A list as the mapping that it stands for."""
        if not isinstance(value, tuple | list | dict):
            return value
        try:
            names = class_names(value)
        except ValueError as error:
            raise PydanticCustomError("value_error", "{text}", {"text": str(error)}) from error
        labels = value.values() if isinstance(value, dict) else counted(len(names), info.data.get("ignore"))
        return dict(zip(names, labels, strict=True))

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without defaults of later keys, so that earlier hashes stay."""
        defaults = {"task": DEFAULT_TASK, "masks": None, "ignore": None, "fit": "cover", "every": None}
        return {name: value for name, value in dump(self).items() if defaults.get(name, ...) != value}

    @property
    def files(self) -> list[str]:
        """Single files that the data set is made from; a change of one changes it."""
        npz = [self.source] if self.source.endswith(".npz") else []
        return [*npz, *filter(None, [self.class_file, *(take.file for take in self.splits.takes().values())])]

    @property
    def by_timm(self) -> bool:
        """Whether timm reads the source."""
        return self.source.partition("/")[0].lower() in TIMM_PREFIXES or self.source.endswith(".tar")

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder of images."""
        return isinstance(self.source, Place) and not self.by_timm and os.path.isdir(self.source)
