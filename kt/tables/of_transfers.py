"""Tables of transfers, searches and methods."""

from __future__ import annotations

from kt.tables.columns import COUNT, FLAG, KEY, METHOD, REAL, SHARES, STUDENT, SUCCESS, TAGS, TEXT, Column

USES_LABELS = Column(
    "uses_labels",
    FLAG,
    "flag",
    "true where the method uses the labels of the transfer images: its control is `finetune`",
)
TRAINS = Column("trains", FLAG, "flag", "false for ensembles: models answer together, and no student is trained")
SEARCHED = Column("method", TEXT, "name", "the searched method")
STATUS = Column("status", TEXT, "name", "`ok` or `failed`")
ACC_AFTER = Column("acc_after", REAL, "percent", "the same after the LAST epoch", True)
EPOCHS = Column("epochs", COUNT, "epochs", "epochs trained")
SECONDS = Column("seconds", REAL, "seconds", "wall time of the training with its evaluations", True)
TRANSFERS: dict[str, tuple[Column, ...]] = {
    "transfers": (
        Column("teacher", TEXT, "name", "the model that teaches; null where several do", True),
        Column("student", TEXT, "name", "the model that learns; of an experiment, its name"),
        Column(
            "teachers", TAGS, "names", "all models that teach: one for a pair, several for a group or an experiment"
        ),
        Column("method", TEXT, "name", "the transfer method, or the control `self` or `finetune`"),
        Column("seed", COUNT, "number", "seed of the data order and of anything random in training"),
        Column(
            "control",
            FLAG,
            "flag",
            "true where the method needs no teacher: one training, shared by the student's pairs",
        ),
        USES_LABELS,
        TRAINS,
        STATUS,
        Column(
            "reason",
            TEXT,
            "text",
            "why it failed: `diverged`, `out_of_memory`, `same_model` (a teacher is the student under another name) or "
            "`error`, and the message",
            True,
        ),
        Column("n", COUNT, "images", "test images that the row was measured on"),
        Column(
            "acc_before",
            REAL,
            "percent",
            "student's accuracy on the test split before transfer; null for experiments, whose students are new",
            True,
        ),
        ACC_AFTER,
        Column("delta", REAL, "percentage points", "transfer delta: acc_after − acc_before = gain − loss", True),
        Column(
            "delta_se",
            REAL,
            "percentage points",
            "standard error of `delta`: a paired difference over the test images",
            True,
        ),
        Column("knowledge_gain", REAL, "percent of images", "wrong before, right after", True),
        Column("knowledge_loss", REAL, "percent of images", "right before, wrong after", True),
        Column(
            "transfer_rate",
            REAL,
            "percent",
            "of the teacher's positive flips over the student, the share that the student now gets right, on the same "
            "images; null if the teacher has none; of several teachers all positive flips count",
            True,
        ),
        Column(
            "transfer_rate_published",
            REAL,
            "percent",
            "as published: ALL gained images of the classes with a positive flip of the teacher, over its positive "
            "flips; may pass 100",
            True,
        ),
        Column("gain_entropy", REAL, "nats", "entropy of the gained images over the classes; ln C if uniform", True),
        *(
            Column(
                f"gain_in_{share}",
                REAL,
                "percent",
                f"of the gained images, those in the classes that hold {share} % of the teacher's positive flips",
                True,
            )
            for share in SHARES
        ),
        Column(
            "taught_errors",
            REAL,
            "percent",
            "of the images that the student got right and the teacher gets wrong, those that the student now gets "
            "wrong with the teacher's class; the control `self` shows how many are chance",
            True,
        ),
        Column(
            "teacher_share",
            REAL,
            "percent of images",
            "transfer images for which a teacher gives the target; for `bikd` before training",
            True,
        ),
        EPOCHS,
        Column("best_epoch", COUNT, "epoch", "epoch with the best validation accuracy, counted from 1", True),
        Column("delta_best", REAL, "percentage points", "`delta` at `best_epoch` instead of the last epoch", True),
        Column("steps", COUNT, "steps", "optimiser steps taken", True),
        Column("budget", COUNT, "trainings", "trainings of one model that the row took, of `epochs` each", True),
        Column(
            "pieces",
            COUNT,
            "pieces",
            "parts that each batch was cut into to fit in memory; their gradients are summed",
            True,
        ),
        SECONDS,
        Column("device", TEXT, "name", "`cpu`, or the GPU's name", True),
        Column("key", TEXT, "hash", "the unit of work in the ledger; rows of one control training share it"),
    ),
    "trials": (
        Column("teacher", TEXT, "name", "the model that teaches; null for a control", True),
        STUDENT,
        SEARCHED,
        Column("parameters", TEXT, "JSON", "the candidate: the values that were tried"),
        Column("seed", COUNT, "number", "seed of the training"),
        STATUS,
        Column("reason", TEXT, "text", "why it failed", True),
        Column("n", COUNT, "images", "validation images that the row was measured on"),
        Column("acc_before", REAL, "percent", "student's accuracy on the VALIDATION split before transfer"),
        ACC_AFTER,
        Column("delta", REAL, "percentage points", "acc_after − acc_before", True),
        Column("delta_se", REAL, "percentage points", "its standard error over the validation images", True),
        EPOCHS,
        SECONDS,
        KEY,
    ),
    "search": (
        SEARCHED,
        Column("parameters", TEXT, "JSON", "the candidate: the values that were tried; the others are `config.yaml`'s"),
        Column("pairs", COUNT, "pairs", "pairs (of a control: students) with a finished training"),
        Column("trainings", COUNT, "trainings", "trainings of the candidate"),
        Column("failed", COUNT, "trainings", "those that failed; a candidate with any is not chosen"),
        Column("delta", REAL, "percentage points", "mean delta on the VALIDATION split over pairs", True),
        Column("delta_se", REAL, "percentage points", "its ordinary standard error over pairs; null for one", True),
        Column("difference", REAL, "percentage points", "mean difference from the chosen one on the same pairs", True),
        Column("difference_se", REAL, "percentage points", "its ordinary standard error over pairs", True),
        Column("chosen", FLAG, "flag", "true for the candidate that all pairs are transferred with"),
    ),
    "methods": (
        METHOD,
        Column("control", FLAG, "flag", "true for `self` and `finetune`"),
        USES_LABELS,
        TRAINS,
        Column("group", TEXT, "name", "`all` pairs, or those with a `weaker`, `equal` or `stronger` teacher"),
        Column("pairs", COUNT, "pairs", "pairs that the row is about"),
        Column("students", COUNT, "models", "distinct students among them"),
        Column("seeds", COUNT, "seeds", "most seeds per pair; a pair's delta is first averaged over its seeds"),
        Column("failed", COUNT, "units", "failed units, which are left out"),
        Column("delta", REAL, "percentage points", "mean transfer delta over pairs"),
        Column(
            "delta_se", REAL, "percentage points", "its standard error, robust to pairs that share a model (dyadic)"
        ),
        Column("delta_se_iid", REAL, "percentage points", "the ordinary standard error, as if pairs were independent"),
        Column("median", REAL, "percentage points", "median delta over pairs"),
        Column("worst", REAL, "percentage points", "lowest delta of a pair"),
        SUCCESS,
        Column("transfer_rate", REAL, "percent", "mean transfer rate over pairs", True),
        Column("parameters", TEXT, "JSON", "the method's parameters; null where they are not known", True),
        Column("transfer_rate_published", REAL, "percent", "mean of the rate as published; may pass 100", True),
        Column("taught_errors", REAL, "percent", "mean share of taught errors over pairs", True),
        Column(
            "taught_errors_beyond",
            REAL,
            "percentage points",
            "mean over pairs of `taught_errors` less those of the control `self` with the same teacher and seed",
            True,
        ),
        Column(
            "taught_errors_beyond_se",
            REAL,
            "percentage points",
            "its standard error, robust to pairs that share a model (dyadic)",
            True,
        ),
    ),
}
