"""Recipes: what the configuration says of how a file is made, as a hash that is noted in it or beside it. No torch.

Snakemake keeps such records too, but in the folder of the configuration: results that are copied come without them.
"""

from __future__ import annotations

from kt import predictions, store
from kt.control.study import ControlStudy
from kt.study.study import Study

RECIPE = "recipe_hash"
"""Fact of a member, and of the data set: hash of its recipe; no property of the model."""


def of_data(study: Study | ControlStudy) -> str:
    """Hash of all in the configuration that determines the decoded data set, or the games."""
    if isinstance(study, ControlStudy):
        return store.digest([study.zoo.modules, {at: game.plain() for at, game in study.games().items()}])
    return store.digest(study.data.plain())


def of_member(study: Study | ControlStudy, name: str) -> str:
    """Hash of all in the configuration that determines a member's weights and its predictions, or its episodes."""
    own = [study.zoo.models[name].plain(), study.zoo.modules]
    if isinstance(study, ControlStudy):
        return store.digest([*own, study.data.plain()])
    plan, views = study.transfer, study.transfer.views
    kept = [study.features, views and views.plain(), plan.top_k, plan.answers]
    return store.digest([*own, study.zoo.input_of(name).plain(), *kept, predictions.VERSION])
