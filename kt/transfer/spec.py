"""The ``transfer`` section of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, create_model, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from kt.data.seen import ViewsSpec
from kt.errors import quoted, unknown
from kt.pairs import PairRule
from kt.spec import Options, Spec
from kt.transfer import search as searching
from kt.transfer.method import Method, registry
from kt.transfer.search import SearchSpec
from kt.transfer.training import Seeds, Training
from kt.transfer.unit import Plans, Unit


class MethodsBase(Options):
    """The methods to run, with their parameters."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.chosen():
            raise ValueError(f"no method chosen; allowed: {', '.join(type(self).model_fields)}")
        return self

    def chosen(self) -> dict[str, Method]:
        """The methods that the configuration names, in alphabetical order."""
        return self.options()


def option(method: type[Method]) -> Any:
    """A method as a field of the configuration."""
    return (method | None, Field(None, description=(method.__doc__ or "").splitlines()[0]))


Methods: type[MethodsBase] = create_model(
    "Methods",
    __base__=MethodsBase,
    __doc__=MethodsBase.__doc__,
    **{name: option(method) for name, method in registry().items() if method.takes != "group"},
)


class Running(Spec):
    """How trainings run, and which students are kept."""

    export: Literal["none", "improved", "all"] = Field(
        "none",
        description="students to keep in `results/students`, as folders that timm loads: those that are better on "
        "validation than before, or all; finished trainings whose students were not kept run again",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="trainings that a job runs at once, each in a process of its own, on one GPU or on an equal share "
        "of its cores; changes results by no more than the number of threads of a process does",
    )
    checkpoint_seconds: float = Field(600, ge=0, description="seconds between two checkpoints inside a training")


class TransferSpec(Running):
    """Methods that run on the chosen pairs, their seeds and training, and the size of a job."""

    methods: Methods
    seeds: Seeds = Field((0, 1, 2), description="one training a seed; distinct, 0 to 4294967295")
    training: Training
    views: ViewsSpec | None = Field(
        None, description="random crops of the transfer images to train on; the plain images when left out"
    )
    top_k: PositiveInt | None = Field(
        None, description="logits to keep of each transfer image on disk, the largest; all when left out"
    )
    answers: Literal["auto", "kept", "recomputed"] = Field(
        "auto",
        description="of a dense task: whether answers are kept on disk, or computed whenever a training reads them; "
        "`auto` keeps those of at most 4 MiB per image; changes results by rounding alone",
    )
    search: SearchSpec | None = Field(
        None, description="methods whose parameters are chosen on the validation split first; none when left out"
    )
    pairs_per_job: PositiveInt = Field(
        16, description="teachers that one job of a student takes, or up to a quarter more; does not change results"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the default of a later key, so that earlier hashes stay."""
        later = {"answers": "auto", "processes": 1}
        return {name: value for name, value in dump(self).items() if name not in later or value != later[name]}

    @model_validator(mode="after")
    def _search_fits(self) -> TransferSpec:
        if self.search is None:
            return self
        methods = self.methods.chosen()
        for name in self.search.grids():
            if name not in methods:
                raise PydanticCustomError(
                    "value_error", "{text}", {"text": f"search.methods: {unknown('method', name, methods)}"}
                )
        if shared := set(self.search.seeds) & set(self.seeds):
            text = f"search.seeds: {quoted(sorted(shared))} are among transfer.seeds; the search needs seeds of its own"
            raise PydanticCustomError("value_error", "{text}", {"text": text})
        self.candidates()
        return self

    def candidates(self) -> dict[str, dict[str, Method]]:
        """Candidates of every searched method, by their values as JSON."""
        return searching.candidates(self.methods.chosen(), self.search) if self.search else {}

    def trial_pairs(self, names: Sequence[str], rule: PairRule) -> dict[str, list[str]]:
        """Teachers of every student that the search tries its candidates on, known before anything runs."""
        return searching.pairs_of(names, rule, self.search.pairs) if self.search else {}

    def trials(self, student: str, teachers: Sequence[str], plans: Plans) -> list[Unit]:
        """The units of the search for one student and its teachers there."""
        if self.search is None:
            return []
        return searching.units_of(self.candidates(), student, teachers, self.search.seeds, plans)
