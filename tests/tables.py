"""Synthetic tables that fit the schema, with effects planted in them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kt.analysis import analyse, inputs
from kt.analysis.deltas import summarise
from kt.complementarity import table
from kt.complementarity.sources import Source
from kt.complementarity.spec import ComplementaritySpec
from kt.figures.tables import Tables
from kt.predictions import Outputs
from kt.tables import schema
from kt.tables.columns import SHARES
from kt.tasks.segmentation import IGNORED, Segmentation
from kt.tasks.task import Metric, Task, Words

Effect = Callable[[float], float]
"""Transfer delta in percentage points, given how many points better the teacher is than the student."""

CONTROLS = ("self", "finetune")
LABELLED = ("xekl", "kl_dp", "finetune")
EFFECTS: dict[str, Effect] = {
    "kl": lambda gap: 0.9 * gap,
    "kl_dp": lambda gap: 3 + 0.4 * gap,
    "kl_dp_unsup": lambda gap: 2.5 + 0.4 * gap,
    "self": lambda gap: 0.0,
    "finetune": lambda gap: 3.5,
}
EQUAL_WITHIN = 2.0
SEGMENTATION = Segmentation()


@dataclass
class InMemory:
    """Predictions in memory: logits [N, C], and features [N, D] where there are any, of every model by name."""

    of: Mapping[str, np.ndarray]
    features_of: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def saying(cls, names: Sequence[str], predicted: np.ndarray, classes: int) -> "InMemory":
        """Models that predict these classes, [M, N]."""
        return cls({name: np.eye(classes, dtype=np.float16)[row] for name, row in zip(names, predicted, strict=True)})

    @property
    def names(self) -> list[str]:
        return list(self.of)

    @property
    def images(self) -> int:
        return len(next(iter(self.of.values())))

    def kept(self, model: int, rows: slice) -> np.ndarray:
        return self.logits(model, rows).argmax(1).astype(np.uint16)

    def top(self, model: int, rows: slice) -> np.ndarray:
        return np.argsort(-self.logits(model, rows), 1, kind="stable")[:, :5].astype(np.uint16)

    def logits(self, model: int, rows: slice) -> np.ndarray:
        return self.of[self.names[model]][rows]

    def features(self, model: int, rows: slice) -> np.ndarray:
        return self.features_of[self.names[model]][rows]

    def content(self, model: int) -> str:
        everything = [of[self.names[model]].tobytes() for of in (self.of, self.features_of) if of]
        return hashlib.sha256(b"".join(everything)).hexdigest()


def said(logits: np.ndarray, ids: np.ndarray) -> Outputs:
    """What a model says whose logits float16 can hold."""
    top = np.argsort(-logits.astype(float), 1, kind="stable")[:, :5]
    return Outputs(logits, top[:, 0], ids, top)


class Kept(InMemory):
    """What a task without classes keeps of the answers of every model, [M, N]; models are named by their numbers."""

    def __init__(self, kept: np.ndarray) -> None:
        super().__init__({str(model): of_model for model, of_model in enumerate(kept)})

    def kept(self, model: int, rows: slice) -> np.ndarray:
        return self.logits(model, rows)


class Said:
    """Predicted classes of every pixel, uint8 [M, N, H, W], and what follows from them and the truth."""

    def __init__(self, maps: np.ndarray, truth: np.ndarray, classes: int) -> None:
        self.maps, self.names = maps.astype(np.uint8), [f"m{i}" for i in range(len(maps))]
        self.images = len(truth)
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(self.maps).long(), classes).movedim(-1, 2).float()
        self.counts = [SEGMENTATION.kept(of_model, torch.from_numpy(truth)).numpy() for of_model in one_hot]
        self.read: list[tuple[int, int, int]] = []

    def kept(self, model: int, rows: slice) -> np.ndarray:
        return self.counts[model][rows]

    def top(self, model: int, rows: slice) -> np.ndarray:
        self.read.append((model, rows.start, rows.stop))
        return self.maps[model, rows]

    def logits(self, model: int, rows: slice) -> np.ndarray:
        raise AssertionError("no answers are kept")

    features = logits

    def content(self, model: int) -> str:
        return hashlib.sha256(self.maps[model].tobytes()).hexdigest()


def score(
    source: Source,
    truth: np.ndarray,
    classes: int,
    spec: ComplementaritySpec | None = None,
    split: str = "test",
    task: Task = table.CLASSIFICATION,
) -> pd.DataFrame:
    """The table ``complementarity``, as the pipeline makes it."""
    with ThreadPoolExecutor(2) as pool:
        made = table.make(source, truth, classes, split, spec or ComplementaritySpec(), None, pool, task)
        return pd.concat([piece.to_pandas() for piece in made.pieces], ignore_index=True)


def study(
    models: int = 8,
    seeds: int = 2,
    effects: Mapping[str, Effect] = EFFECTS,
    classes: int = 10,
    images: int = 1000,
    noise: float = 0.5,
    accuracy: tuple[float, float] = (0.75, 0.97),
) -> dict[str, pd.DataFrame]:
    """All tables that figures and report read, as frames."""
    rng = np.random.default_rng(0)
    names = [f"model_{i}" for i in range(models)]
    labels = rng.integers(classes, size=images)
    right = rng.random((models, images)) < np.linspace(*accuracy, models)[:, None]
    predicted = np.where(right, labels, (labels + 1 + rng.integers(classes - 1, size=(models, images))) % classes)
    scores = score(InMemory.saying(names, predicted, classes), labels, classes)
    pairs = scores[["teacher", "student"]].assign(reason="all", chunk=0)
    transfers = _transfers(scores, effects, seeds, images, noise, rng)
    return {
        "zoo": _zoo(names, predicted == labels),
        "complementarity": scores,
        "pairs": pairs,
        "transfers": transfers,
        "methods": summarise(transfers, scores, EQUAL_WITHIN),
    }


THINGS = ("background", "road", "pavement", "traffic light", "pole", "person")


def scenes(models: int = 5, images: int = 60) -> dict[str, pd.DataFrame]:
    """The tables of a study of segmentation: each model knows a class of its own less well."""
    rng, classes = np.random.default_rng(0), len(THINGS)
    truth = rng.choice(classes, (images, 4, 4), p=np.linspace(2, 1, classes) / np.linspace(2, 1, classes).sum())
    truth = truth.repeat(6, 1).repeat(6, 2).astype(np.uint8)
    known = np.linspace(0.6, 0.9, models)[:, None] - 0.5 * np.eye(models, classes)
    sure = rng.random((models, images, 1, 1)) ** 0.2 * known[:, truth]
    maps = np.where(
        rng.random((models, *truth.shape)) < sure, truth, rng.integers(classes, size=(models, *truth.shape))
    )
    truth[:, 0] = IGNORED
    source = Said(maps, truth, classes)
    scores = score(source, truth, classes, task=SEGMENTATION)
    pairs = scores[["teacher", "student"]].assign(reason="all", chunk=0)
    transfers = _transfers(scores, EFFECTS, 2, images, 0.5, rng)
    transfers = transfers.assign(**dict.fromkeys(name for name in OF_CLASSES if name in transfers))
    of_models = [(kept, SEGMENTATION.scores(kept, truth)) for kept in source.counts]
    own = {
        "acc": [SEGMENTATION.value(of_model) for _, of_model in of_models],
        "acc_se": [SEGMENTATION.error(of_model) for _, of_model in of_models],
        **pd.DataFrame([SEGMENTATION.describe(None, *of_model) for of_model in of_models]).to_dict("series"),
    }
    zoo = _zoo(source.names, np.ones((models, images))).assign(**own, **dict.fromkeys(("ece", "log_ratio", "entropy")))
    return {
        "zoo": zoo,
        "complementarity": scores,
        "pairs": pairs,
        "transfers": transfers,
        "methods": summarise(transfers, scores, EQUAL_WITHIN),
    }


def _transfers(
    scores: pd.DataFrame, effects: Mapping[str, Effect], seeds: int, images: int, noise: float, rng: np.random.Generator
) -> pd.DataFrame:
    rows = []
    shared: dict[tuple[str, str, int], int] = {}
    for pair in scores.itertuples():
        for method, effect in effects.items():
            for seed in range(seeds):
                control = method in CONTROLS
                change = round((effect(0.0 if control else pair.acc_difference) + rng.normal(0, noise)) * images / 100)
                if control:
                    change = shared.setdefault((method, pair.student, seed), change)
                gained, lost = max(change, 0) + 2, max(-change, 0) + 2
                gain, loss = gained / images, lost / images
                rows.append(
                    {
                        "teacher": pair.teacher, "student": pair.student, "teachers": [pair.teacher],
                        "method": method, "seed": seed,
                        "control": control, "uses_labels": method in LABELLED, "trains": True,
                        "status": "ok", "reason": None, "n": images,
                        "acc_before": pair.acc_student, "acc_after": pair.acc_student + 100 * (gain - loss),
                        "delta": 100 * (gained - lost) / images,
                        "delta_se": 100 * float(np.sqrt((gain + loss - (gain - loss) ** 2) / images)),
                        "knowledge_gain": 100 * gain, "knowledge_loss": 100 * loss,
                        "transfer_rate": 40.0 if pair.pos_flips > 0 else None,
                        "transfer_rate_published": 60.0 if pair.pos_flips > 0 else None,
                        "taught_errors": (2.0 if control else 8.0) if pair.neg_flips > 0 else None,
                        "gain_entropy": 1.5, **{f"gain_in_{share}": float(share) for share in SHARES},
                        "teacher_share": None if control else 50 + pair.acc_difference, "epochs": 4, "best_epoch": 4,
                        "delta_best": 100 * (gain - loss), "steps": 16, "budget": 1, "pieces": 1,
                        "seconds": 0.5, "device": "cpu",
                        "key": f"{method}-{'' if control else pair.teacher}-{pair.student}-{seed}",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _zoo(names: Sequence[str], right: np.ndarray) -> pd.DataFrame:
    share = right.mean(1)
    return pd.DataFrame(
        {
            "name": names, "arch": "resnet10t", "tag": None, "family": "resnet",
            "kind": [("cnn", "transformer", "mlp")[i % 3] for i in range(len(names))],
            "params": 250_000, "macs": 3_000_000, "input_size": 16, "feature_width": 64, "pretraining": "digits",
            "finetuning": None, "year": 2015, "recipe": [["augment=shift"]] * len(names), "licence": None,
            "train_images": 400, "train_seconds": 4.2,
            "fingerprint": [f"{i:064x}" for i in range(len(names))], "acc": 100 * share,
            "acc_se": 100 * np.sqrt(share * (1 - share) / right.shape[1]), "acc_validation": 100 * share, "ece": 3.1,
            "log_ratio": 2 + share, "entropy": 1 - share,
            "acc_published": None, "acc_agrees": None, "classes": None,
        }
    )  # fmt: skip


DEPTH = Words("depth", Metric("rho", "correlation", "(−1 to 1)", "points of correlation", "Δρ"), "frame", False)
"""A task without classes and with real-valued scores."""

OF_CLASSES = (
    "class_entropy", "neg_class_entropy", "class_similarity", "expertise", "flips_by_class", "pos_flips_untrained",
    *(f"{name}_{share}" for name in ("expertise", "expertise_similarity", "gain_in") for share in SHARES),
    "taught_errors", "transfer_rate_published", "gain_entropy", "agreement", "ece", "log_ratio", "entropy",
)  # fmt: skip


def of_depth(study: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same study as one of the task ``DEPTH``: its metric is a hundredth, what is about classes is null."""
    made = {}
    for name, frame in study.items():
        parts = [c for c in frame if c.startswith(("acc", "delta", "pos_flips", "neg_flips", "knowledge"))]
        small = {c: frame[c].astype(float) / 100 for c in parts if c != "acc_agrees"}
        made[name] = frame.assign(**small | {c: None for c in OF_CLASSES if c in frame})
    made["methods"] = summarise(made["transfers"], made["complementarity"], EQUAL_WITHIN / 100)
    return made


def fail(tables: dict[str, pd.DataFrame], rows: pd.Series, reason: str = "diverged: loss is not finite") -> None:
    """Turn some transfers into failures, and summarise again."""
    transfers = tables["transfers"]
    measured = [
        "taught_errors",
        "acc_after",
        "delta",
        "delta_se",
        "knowledge_gain",
        "knowledge_loss",
        "transfer_rate",
        "delta_best",
    ]
    transfers.loc[rows, measured] = np.nan
    transfers.loc[rows, ["status", "reason"]] = ["failed", reason]
    tables["methods"] = summarise(transfers, tables["complementarity"], EQUAL_WITHIN)


def write(
    folder: Path, tables: Mapping[str, pd.DataFrame], task: Words | None = None, classes: Sequence[str] = ()
) -> Path:
    """Write the tables as the pipeline does."""
    facts = ({schema.TASK: task.to_json()} if task else {}) | {schema.CLASS_NAMES: json.dumps(list(classes))}
    for name, frame in tables.items():
        clean = frame.astype(object).where(frame.notna(), None) if task or name != "complementarity" else frame
        schema.write(folder / f"{name}.parquet", name, schema.build(name, clean.to_dict("list")), facts)
    return folder


def analysed(study: Mapping[str, pd.DataFrame], task: Words = inputs.CLASSIFICATION) -> analyse.Analysis:
    """The analysis of a study, with as few samples as make every column."""
    prepared = inputs.prepare(study["transfers"], study["zoo"], study["complementarity"], task)
    return analyse.analyse(prepared, EQUAL_WITHIN, bootstrap=20, draws=99)


def whole(
    study: Mapping[str, pd.DataFrame], task: Words = inputs.CLASSIFICATION, classes: Sequence[str] = ()
) -> Tables:
    """A study with its analysis, as figures and report take them."""
    made = analysed(study, task)
    return Tables.of(study, made.tables, made.equal_within, task, class_names=tuple(classes))


def with_groups(study: dict[str, pd.DataFrame], gain: float = 4.0) -> dict[str, pd.DataFrame]:
    """The study with rows of two methods that take the first three other models as teachers together."""
    transfers = study["transfers"]
    names = study["zoo"]["name"].tolist()
    of_one = transfers[transfers["method"] == "kl_dp"].drop_duplicates(["student", "seed"])
    groups = [
        of_one.assign(
            teacher=None, method=method, delta=gain + more, key=of_one["key"] + method,
            teachers=[[name for name in names if name != student][:3] for student in of_one["student"]],
        )
        for method, more in (("parallel", 0.0), ("soup", 1.0))
    ]  # fmt: skip
    return {**study, "transfers": pd.concat([transfers, *groups], ignore_index=True)}
