"""Choice of pairs: the table ``pairs`` of all rules but ``adaptive``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from kt.errors import KtError
from kt.pairs.plan import jobs, score_of
from kt.pairs.possible import candidates
from kt.pairs.rules import KINSHIP, Adaptive, PairRule, Stratified, Top
from kt.store import digest

if TYPE_CHECKING:
    import pandas as pd


def select(
    names: Sequence[str],
    rule: PairRule,
    pairs_per_job: int,
    scores: pd.DataFrame | None = None,
    families: Mapping[str, str | None] | None = None,
) -> pd.DataFrame:
    """The table ``pairs``, by student and then by teacher, in the order of ``names``.

    Args:
        names: the zoo's models.
        rule: chooses the pairs.
        pairs_per_job: a student's teachers are cut into chunks of this size, as ``parts`` says.
        scores: the complementarity table of the validation split; for ``top`` and ``stratified``.
        families: family of every model, None where it is unknown; for ``stratified`` by family.

    Raises:
        KtError: the rule selects nothing, or needs scores or families that are not there.
    """
    import pandas as pd

    if isinstance(rule, Adaptive):
        raise KtError(
            "pairs: the rule 'adaptive' chooses round by round; give a round's table of pairs, as `kt round` does"
        )
    chosen = pd.DataFrame(candidates(names, rule), columns=["teacher", "student"])
    chosen["reason"] = rule.select
    if isinstance(rule, Top):
        chosen = _top(chosen, rule, scores)
    elif isinstance(rule, Stratified):
        chosen = _stratified(chosen, rule, scores, families)
    last = chosen["student"].map(jobs(names, rule, pairs_per_job)) - 1
    chosen["chunk"] = (chosen.groupby("student").cumcount() // pairs_per_job).clip(upper=last)
    return chosen


def _with_score(pairs: pd.DataFrame, rule: Top | Stratified, scores: pd.DataFrame | None) -> pd.DataFrame:
    by = score_of(rule)
    if scores is None:
        raise KtError(f"pairs: the rule {rule.select!r} needs the complementarity table of the validation split")
    if scores[by].isna().all():
        shown = rule.by if isinstance(rule, Top) else by
        raise KtError(f"pairs.by: the complementarity table has no values of {shown!r}")
    return pairs.merge(scores[["teacher", "student", by]], how="left", on=["teacher", "student"])


def _top(pairs: pd.DataFrame, rule: Top, scores: pd.DataFrame | None) -> pd.DataFrame:
    merged = _with_score(pairs, rule, scores)
    by = score_of(rule)
    rank = merged.groupby("student")[by].rank(method="first", ascending=rule.lowest, na_option="bottom")
    merged["reason"] = [f"top {rule.k} by {by}: rank {int(r)}" for r in rank]
    chosen: pd.DataFrame = merged.loc[rank <= rule.k, ["teacher", "student", "reason"]].reset_index(drop=True)
    return chosen


def _stratified(
    pairs: pd.DataFrame, rule: Stratified, scores: pd.DataFrame | None, families: Mapping[str, str | None] | None
) -> pd.DataFrame:
    """The first pairs of every stratum in an order that does not depend on the rest of the zoo."""
    merged = _with_score(pairs, rule, scores)
    if merged["acc_difference"].isna().any():
        row = merged[merged["acc_difference"].isna()].iloc[0]
        raise KtError(f"pairs: no score for teacher {row['teacher']!r} and student {row['student']!r}")
    edges = [f"{edge:+g}".replace("-", "−") for edge in rule.gaps]
    ranges = [f"below {edges[0]}", *map(" to ".join, pairwise(edges)), f"from {edges[-1]}"]
    merged["stratum"] = [ranges[i] for i in np.searchsorted(rule.gaps, merged["acc_difference"], side="right")]
    if rule.by_family:
        if families is None:
            raise KtError("pairs: the rule 'stratified' with by_family needs the table of models")
        merged["stratum"] += [
            ", " + _kinship(families.get(t), families.get(s))
            for t, s in zip(merged["teacher"], merged["student"], strict=True)
        ]
    merged["drawn"] = [digest([rule.seed, t, s]) for t, s in zip(merged["teacher"], merged["student"], strict=True)]
    rank = merged.groupby(["student", "stratum"])["drawn"].rank(method="first")
    merged["reason"] = "stratified: " + merged["stratum"]
    chosen: pd.DataFrame = merged.loc[rank <= rule.n, ["teacher", "student", "reason"]].reset_index(drop=True)
    return chosen


def _kinship(teacher: str | None, student: str | None) -> str:
    if teacher is None or student is None:
        return KINSHIP[2]
    return KINSHIP[0] if teacher == student else KINSHIP[1]
