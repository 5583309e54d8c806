"""Rules that choose the ordered pairs for transfer.

``all``, ``random``, ``explicit`` and ``file`` need only the names of the models, so the workflow knows its jobs before
anything runs. ``top`` and ``stratified`` use the complementarity table of the VALIDATION split: the largest number of
teachers per student is known beforehand, their names are not. ``adaptive`` chooses in rounds: the number of pairs in
each is known beforehand (``kt.stages.rounds`` chooses them).
"""

from kt.pairs.choice import select
from kt.pairs.plan import jobs, most, needs_families, needs_scores, part, parts, rounds, score_of, start
from kt.pairs.possible import candidates, draw, named
from kt.pairs.rules import (
    OF_METRIC,
    ROLES,
    SCORES,
    Adaptive,
    All,
    Explicit,
    FromFile,
    Pair,
    PairRule,
    Pattern,
    Random,
    Stratified,
    Top,
)
from kt.pairs.shares import quotas, spread

__all__ = [
    "OF_METRIC",
    "ROLES",
    "SCORES",
    "Adaptive",
    "All",
    "Explicit",
    "FromFile",
    "Pair",
    "PairRule",
    "Pattern",
    "Random",
    "Stratified",
    "Top",
    "candidates",
    "draw",
    "jobs",
    "most",
    "named",
    "needs_families",
    "needs_scores",
    "part",
    "parts",
    "quotas",
    "rounds",
    "score_of",
    "select",
    "spread",
    "start",
]
