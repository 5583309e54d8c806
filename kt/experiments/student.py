"""The student of an experiment: its architecture, the weights that it begins with, and what determines them.

A student is checked as a member of the zoo is. No torch here.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from kt import store
from kt.data.spec import InputSpec
from kt.errors import KtError
from kt.spec import File, Spec
from kt.zoo import members as zoo_members
from kt.zoo.registry import Registry
from kt.zoo.spec import FineTune, Member, Recipe, ZooSpec


class Student(Spec):
    """The student: an architecture with fresh weights, with published ones, or with those of a checkpoint."""

    arch: str = Field(description="a timm model name, or one registered by `zoo.modules`")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for `timm.create_model`")
    input: InputSpec | None = Field(
        None, description="what the student sees; default: `zoo.input`, with published weights that of their tag"
    )
    pretrained: bool = Field(
        False, description="begin with the weights that timm publishes; a head of another class count is made anew"
    )
    checkpoint: File | None = Field(
        None, description="begin with a file's weights, as zoo members do; a head of another class count is made anew"
    )

    @property
    def given(self) -> bool:
        """Whether it begins with given weights."""
        return self.pretrained or self.checkpoint is not None

    @model_serializer(mode="wrap")
    def _given_alone(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys of given weights where there are none, so that finished trials keep their keys."""
        plain: dict[str, Any] = dump(self)
        if not self.given:
            del plain["pretrained"], plain["checkpoint"]
        return plain

    def described(self, spec: InputSpec) -> dict[str, Any]:
        """All that determines the student before training, as plain JSON: of a checkpoint the content, not the path.

        Args:
            spec: what the student sees.

        Raises:
            KtError: the checkpoint is gone.
        """
        found = {**self.plain(), "input": spec.plain()}
        return found | {"checkpoint": _digest(self.checkpoint)} if self.checkpoint else found


def _digest(path: str) -> str:
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise KtError(f"{path}: cannot be read ({error.strerror})") from error
    return _digest_once(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _digest_once(path: str, modified: int, size: int) -> str:
    """The file's hash; it is asked for again and again while a run is watched."""
    return store.digest_file(path)


def as_member(student: Student, zoo: ZooSpec) -> Member:
    """The member of the zoo that a student is checked as: fitted with given weights, or trained from fresh ones.

    Args:
        student: as the configuration has it.
        zoo: whose input is the student's where it has none of its own.
    """
    return Member(
        arch=student.arch,
        args=student.args,
        input=student.input if student.given else student.input or zoo.input,
        train=None if student.given else Recipe(epochs=1),
        finetune=FineTune(mode="full", epochs=1) if student.given else None,
        pretrained=student.pretrained,
        checkpoint=student.checkpoint,
    )


def complete(at: str, student: Student, zoo: ZooSpec, known: Registry) -> Student:
    """The student with its full pretrained tag and its input, checked as a member of the zoo.

    Args:
        at: its place in the configuration.
        student: as the configuration has it.
        zoo: whose input is the student's where it has none of its own.
        known: what timm and the user's modules register.

    Raises:
        KtError: an unknown architecture or tag, two sources of weights, a checkpoint that is not weights, no input, …
    """
    if student.pretrained and student.checkpoint:
        raise KtError(f"{at}: give one of `checkpoint` and `pretrained`, not both")
    try:
        member = zoo_members.complete(f"zoo.models.{at}", as_member(student, zoo), zoo, known)
        zoo_members.check(ZooSpec(models={at: member}), known)
    except KtError as error:
        raise KtError(str(error).removeprefix("zoo.models.")) from error
    if not student.given and (student.input or zoo.input):
        return student
    return student.model_copy(update={"arch": member.arch, "input": member.input})
