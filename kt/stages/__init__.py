"""The stages: each reads its part of the configuration and its files, calls pure functions, and writes its files.

What a stage needs beyond tables (torch, timm, matplotlib) is imported when it runs, so that the table stages, and a
transfer job with nothing left to do, never wait for torch.
"""

from kt.stages.members import data, predict, preview, zoo
from kt.stages.one_pair import pair, write_images
from kt.stages.results import choose, complementarity, explore, gather, pairs, report
from kt.stages.units import Wanted, experiment, groups, plan_export, run_export, search, transfer
from kt.stages.weights import weights

__all__ = [
    "Wanted",
    "choose",
    "complementarity",
    "data",
    "experiment",
    "explore",
    "gather",
    "groups",
    "pair",
    "pairs",
    "plan_export",
    "predict",
    "preview",
    "report",
    "run_export",
    "search",
    "transfer",
    "weights",
    "write_images",
    "zoo",
]
