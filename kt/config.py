"""``config.yaml`` as one frozen, typed object: the sections of all stages, checked before anything runs.

Only the edge (the command line and the Snakefile) knows this object; stages get their own section, or plain
arguments. Loading a configuration imports neither torch nor timm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveFloat, ValidationError
from pydantic_core import ErrorDetails

from kt import pairs, store
from kt.amalgamate.spec import Amalgamation
from kt.complementarity.spec import MEASURES, ComplementaritySpec
from kt.data.folders import check_folder
from kt.data.labels import class_map, known_classes, known_names
from kt.data.sources import check_source, known_count
from kt.data.spec import SPLITS, DataSpec, InputSpec
from kt.errors import KtError, listed, unknown
from kt.experiments.spec import Experiment
from kt.flow.spec import FlowExperiment
from kt.layout import Layout
from kt.pairs import PairRule
from kt.spec import Options, Spec
from kt.strict_yaml import Loader
from kt.transfer import groups
from kt.transfer.groups import GroupSpec
from kt.transfer.spec import TransferSpec
from kt.transfer.training import Training
from kt.zoo import registry, selection
from kt.zoo.check import check as check_zoo
from kt.zoo.check import check_classes, check_heads
from kt.zoo.classes import labels_of
from kt.zoo.spec import Name, ZooSpec


class AnalysisSpec(Spec):
    """How results are summarised."""

    equal_within: PositiveFloat = Field(
        2.0,
        description="percentage points of accuracy difference within which a teacher counts as equal to its student",
    )


class Study(Spec):
    """The whole of ``config.yaml``."""

    title: str = Field("Complementary knowledge", description="title of the report")
    results: str = Field("results", description="folder that everything is written to")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto` takes a GPU where there is one"
    )
    data: DataSpec
    zoo: ZooSpec
    complementarity: ComplementaritySpec = ComplementaritySpec()
    pairs: PairRule
    transfer: TransferSpec
    groups: GroupSpec | None = Field(None, description="experiments with several teachers; none when left out")
    amalgamate: dict[Name, Amalgamation] = Field(
        default_factory=dict,
        json_schema_extra={"additionalProperties": False},
        description="experiments by name: teachers of some classes each, one student of all",
    )
    flow: dict[Name, FlowExperiment] = Field(
        default_factory=dict, description="experiments by name: teachers of other tasks, a student that learns its own"
    )
    analysis: AnalysisSpec = AnalysisSpec()

    @property
    def experiments(self) -> dict[str, Mapping[str, Experiment]]:
        """The experiments by name, by the section that they stand in."""
        return {"amalgamate": self.amalgamate, "flow": self.flow}

    def student_input(self, experiment: Experiment) -> InputSpec:
        """What an experiment's student sees."""
        spec = experiment.student.input or self.zoo.input
        assert spec is not None, "kt.experiments.spec.Experiment.check requires it"
        return spec

    def check_classes(self, known: Sequence[str]) -> None:
        """Fail where specialists and experiments do not fit the data set's classes, given by label."""
        check_classes(self.zoo, known)
        for rule, name, experiment in self.each_experiment():
            own = {t: labels_of(t, self.zoo.models[t], known) for t in experiment.teachers}
            experiment.classes(f"{rule}.{name}", own, known)

    def each_experiment(self) -> list[tuple[str, str, Experiment]]:
        """Section, name and experiment of all of them."""
        return [(rule, name, found) for rule, named in self.experiments.items() for name, found in named.items()]

    @property
    def names(self) -> list[str]:
        """The models that are compared and paired, in the order of the file: those without classes of their own."""
        return self.zoo.generalists

    @property
    def members(self) -> list[str]:
        """All of the zoo's models, specialists included, in the order of the file."""
        return list(self.zoo.models)

    @property
    def features(self) -> bool:
        """Whether anything in the study needs the models' penultimate features."""
        methods = [*self.transfer.methods.chosen().values()]
        methods += self.groups.methods.chosen().values() if self.groups else ()
        return "cka" in self.complementarity.measures or any(method.uses_features for method in methods)

    def views(self, split: str) -> int:
        """How often every image of a split is seen by a model, in as many crops."""
        return self.transfer.views.n if self.transfer.views and split == "transfer" else 1

    def shown(self, data: str) -> str:
        """Hash of the data set, from its own hash, and of how its transfer images are shown."""
        views, top = self.transfer.views, self.transfer.top_k
        return store.digest([data, views and views.plain(), top]) if views or top else data

    @property
    def hash(self) -> str:
        """Hash of the configuration, for the tables' metadata."""
        return store.digest(self.plain())

    def check_splits(self, counts: Mapping[str, int]) -> None:
        """Fail where splits have fewer images than the stages need.

        Args:
            counts: images of each split whose number is known.

        Raises:
            KtError: a recipe or a batch asks for more images than its split has.
        """
        for name, member in self.zoo.models.items():
            recipe, key = member.train or member.finetune, "train" if member.train else "finetune"
            asked = (recipe.images or 1) if recipe else 0
            if asked > counts.get("zoo", asked):
                raise KtError(
                    f"zoo.models.{name}.{key}.images: {asked} asked for, but data.splits.zoo is {counts['zoo']}"
                )
        for at, training in self.trainings().items():
            if training.batch_size > counts.get("transfer", training.batch_size):
                raise KtError(
                    f"{at}.training.batch_size: {training.batch_size} is larger than data.splits.transfer "
                    f"({counts['transfer']})"
                )

    def trainings(self) -> dict[str, Training]:
        """How students are trained, by the place in the configuration that says so; of a search the largest batch."""
        common = self.transfer.training
        methods = {f"transfer.methods.{name}": method for name, method in self.transfer.methods.chosen().items()}
        if self.groups:
            methods |= {f"groups.methods.{name}": method for name, method in self.groups.methods.chosen().items()}
        for name, candidates in self.transfer.candidates().items():
            largest = max(candidates.values(), key=lambda method: method.trained(common).batch_size)
            methods[f"transfer.search.methods.{name}"] = largest
        found = {"transfer": common} | {at: m.trained(common) for at, m in methods.items() if m.training}
        for rule, name, experiment in self.each_experiment():
            at = f"{rule}.{name}"
            found[at] = experiment.plan
            found |= {
                f"{at}.methods.{method}": approach.trained(experiment.plan)
                for method, approach in experiment.approaches().items()
                if approach.training
            }
        return found


def _line(error: ErrorDetails) -> str:
    """One line for one of pydantic's errors: where, what is wrong, what was given, what is allowed."""
    union = next((n for n, at in ((1, ("pairs",)), (2, ("groups", "choose"))) if error["loc"][:n] == at), None)
    parts = error["loc"] if union is None else error["loc"][:union] + error["loc"][union + 1 :]
    location = ".".join(str(part) for part in parts if part != "[key]")
    given = error["input"]
    text = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    text = re.sub(r"valid dictionary( or .*)?$", "mapping of keys to values", text)
    if error["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", str((error.get("ctx") or {}).get("expected", "")))
        return f"{location}: {unknown('value', str(given), expected)}"
    if error["type"] == "union_tag_invalid":
        expected = re.findall(r"'([^']*)'", str((error.get("ctx") or {}).get("expected_tags", "")))
        tag = str((error.get("ctx") or {}).get("tag"))
        return f"{location}.select: {unknown('rule', tag, expected)}"
    if error["type"] == "union_tag_not_found":
        rules = (
            "explicit, random or ranked" if error["loc"][0] == "groups" else "all, random, explicit, top or stratified"
        )
        return f"{location}: the key 'select' is missing; it names the rule: {rules}"
    if error["type"] == "too_short":
        least = (error.get("ctx") or {}).get("min_length")
        return f"{location}: at least {least} needed, not {json.dumps(given, default=str)[:80]}"
    if error["type"] == "missing":
        return f"{location}: this key is missing"
    if error["type"] in ("unknown_key", "value_error"):
        return f"{location}: {text}" if location else text
    return f"{location}: {text[0].lower()}{text[1:]}, not {json.dumps(given, default=str)[:80]}"


def _with_tuples(value: Any) -> Any:
    """YAML's lists as tuples: the typed sections are frozen, and strict validation tells the two apart."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def parse(raw: Any, name: str) -> Study:
    """A configuration from plain values.

    Raises:
        KtError: with one line for each thing that is wrong.
    """
    if not isinstance(raw, dict):
        raise KtError(f"{name}: not a mapping of keys to values")
    try:
        return Study.model_validate(_with_tuples(raw))
    except ValidationError as error:
        raise KtError("\n".join(f"{name}: {_line(detail)}" for detail in _causes(error))) from error


def _causes(error: ValidationError) -> list[ErrorDetails]:
    """What is wrong, without lists that are too short only because their wrong items were left out."""
    details = error.errors()
    return [
        detail
        for detail in details
        if detail["type"] != "too_short" or not any(other["loc"][:-1] == detail["loc"] for other in details)
    ]


def check(study: Study) -> Study:
    """Everything that can be known to be wrong before anything runs.

    Returns:
        The study with its zoo complete: a member for every selected model, each with its input.

    Raises:
        KtError: an unknown architecture, a missing checkpoint, splits larger than the data set, a pair rule that
            selects nothing, a results folder that cannot be written, …
    """
    known = registry.load(study.zoo.modules)
    zoo = selection.expand(study.zoo, known, lambda tags: registry.sizes(tags, study.zoo.modules))
    check_zoo(zoo, known)
    study = study.model_copy(update={"zoo": zoo})
    for rule, name, experiment in study.each_experiment():
        experiment.check(f"{rule}.{name}", zoo, known)
    check_data(study.data)
    if not (Layout(Path(study.results)).data / "meta.json").exists():  # else the stage `data` has looked closer
        if study.data.is_folder:
            check_folder(study.data)
        if names := known_names(study.data):
            study.check_classes(names)
        if classes := known_classes(study.data):
            check_heads(zoo, known, classes)
    sizes = study.data.splits
    study.check_splits({split: images for split in SPLITS if (images := sizes.known(split)) is not None})
    _check_specialists(study)
    if study.groups:
        groups.check(study.names, study.groups.choose)
    if study.data.splits.transfer.folder:
        _check_without_labels(study)
    _check_complementarity(study)
    pairs.candidates(study.names, study.pairs)
    store.check_writable(study.results)
    return study


def check_data(data: DataSpec) -> None:
    """Everything that can be known to be wrong with the data set without listing its images.

    Raises:
        KtError: the source, a class file or a file of images does not exist, or the splits ask for too many images.
    """
    check_source(data)
    class_map(data)
    known = [take.images for take in data.splits.takes().values() if take.images and not take.folder]
    images = known_count(data)
    if images is not None and sum(known) > images:
        raise KtError(f"data.splits: {sum(known)} images asked for, but {data.source!r} has {images}")


def _check_without_labels(study: Study) -> None:
    sections: dict[str, Options] = {"transfer": study.transfer.methods}
    if study.groups:
        sections["groups"] = study.groups.methods
    sections |= {f"{rule}.{name}": experiment.methods for rule, name, experiment in study.each_experiment()}
    for section, methods in sections.items():
        for name, method in methods.options().items():
            if method.labelled:
                allowed = [known for known, default in methods.defaults().items() if not default.labelled]
                raise KtError(
                    f"{section}.methods.{name}: uses labels, but the images of data.splits.transfer.folder have none; "
                    f"allowed: {listed(allowed) or 'none'}"
                )


def _check_specialists(study: Study) -> None:
    """Fail where a specialist stands among the models that are compared."""
    if len(study.names) < 2:
        raise KtError(f"zoo.models: at least 2 models without `classes` needed, not {len(study.names)}")
    for at, name in [*pairs.named(study.pairs), *(groups.named(study.groups.choose) if study.groups else ())]:
        if name in study.zoo.models and name not in study.names:
            raise KtError(f"{at}: {name!r} is a specialist (zoo.models.{name}.classes); allowed: models of all classes")


def _check_complementarity(study: Study) -> None:
    vectors = study.complementarity.class_embeddings
    if vectors and not (vectors.endswith((".npz", ".parquet")) and Path(vectors).is_file()):
        raise KtError(f"complementarity.class_embeddings: {vectors!r} is not an existing .npz or .parquet file")
    by, measured = pairs.score_of(study.pairs), study.complementarity.measures
    for measure in MEASURES:
        if by.startswith(measure) and measure not in measured:
            raise KtError(f"pairs.by: {by!r} is not measured; add {measure!r} to complementarity.measures")


def load(path: str | Path) -> Study:
    """Read and check a configuration file.

    Raises:
        KtError: one line for each thing that is wrong, with the file's name.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)  # noqa: S506 (derives from SafeLoader)
        study = check(parse(raw, str(path)))
    except OSError as error:
        raise KtError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KtError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except KtError as error:
        raise KtError("\n".join(_prefixed(line, str(path)) for line in str(error).splitlines())) from error
    return study


def _prefixed(line: str, name: str) -> str:
    return line if line.startswith(f"{name}: ") else f"{name}: {line}"


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``config.yaml``, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
