"""Tables that the stages of a study write: every column's name, dtype, unit and meaning."""

from __future__ import annotations

import pyarrow as pa

from kt.tables.columns import CLASSES, COUNT, FLAG, KEY, METHOD, PAIR, REAL, REALS, STUDENT, SUCCESS, TAGS, TEXT, Column


def _added(name: str, dtype: pa.DataType, unit: str, meaning: str) -> Column:
    return Column(name, dtype, unit, meaning, nullable=True, added=True)


SHARES = (2, 5, 20, 50)
"""Percent of the positive flips that an area of expertise holds at least."""

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

STUDY: dict[str, tuple[Column, ...]] = {
    "splits": (
        Column("image_id", COUNT, "id", "the image's position in the data set"),
        Column("row", COUNT, "index", "where the image lies in `images.npy` and `labels.npy`"),
        Column("name", TEXT, "name", "its path or number in the source"),
        Column("label", COUNT, "class", "its class; −1 where it has none"),
        Column("split", TEXT, "name", "`zoo`, `transfer`, `validation` or `test`"),
    ),
    "zoo": (
        Column("name", TEXT, "name", "the model's name in `config.yaml`"),
        Column("arch", TEXT, "name", "the timm architecture"),
        Column("tag", TEXT, "name", "timm's tag of the published weights", True),
        Column("family", TEXT, "name", "the architecture's family: the timm module it comes from", True),
        Column("kind", TEXT, "name", "`cnn`, `transformer`, `mlp` or `hybrid`", True),
        Column("params", COUNT, "count", "number of parameters"),
        Column("macs", COUNT, "count", "multiply-accumulate operations of one forward pass of one image"),
        Column(
            "input_size",
            COUNT,
            "pixels",
            "side of the input image; of an oblong one that of the square of the same area",
        ),
        Column("feature_width", COUNT, "count", "width of the features before the classifier"),
        Column("pretraining", TEXT, "name", "data of the weights' first training", True),
        Column("finetuning", TEXT, "name", "data of their later trainings, in order, joined by `+`", True),
        Column("recipe", TAGS, "tags", "how the weights were trained, e.g. `augment=shift`"),
        Column("year", COUNT, "year", "first paper on the architecture", True),
        Column("licence", TEXT, "SPDX", "licence of the weights", True),
        Column(
            "train_images", COUNT, "count", "images this pipeline trained the model on; given weights have none", True
        ),
        Column("train_seconds", REAL, "seconds", "time this pipeline took to train it; given weights have none", True),
        Column("fingerprint", TEXT, "hash", "identifies architecture, input and weights"),
        Column(
            "classes",
            CLASSES,
            "classes",
            "of a specialist, in the order of its outputs: it is measured on images of these; null where it has all",
            True,
        ),
        Column("acc", REAL, "percent", "top-1 accuracy on the test split"),
        Column("acc_se", REAL, "percentage points", "binomial standard error of `acc`"),
        Column("acc_published", REAL, "percent", "the published accuracy, where it was given", True),
        Column(
            "acc_agrees",
            FLAG,
            "flag",
            "false where `acc` is more than three binomial standard errors from `acc_published`",
            True,
        ),
        Column("acc_validation", REAL, "percent", "top-1 accuracy on the validation split"),
        Column("ece", REAL, "percent", "expected calibration error on the test split, 15 equal-width bins", True),
        Column(
            "log_ratio",
            REAL,
            "nats",
            "mean over the test images of ln(p₁/p₂), the likeliest class's probability over the second's",
            True,
        ),
        Column("entropy", REAL, "nats", "mean entropy of the predicted probabilities of the test images", True),
        _added("pixel_accuracy", REAL, "percent", "of segmentation: pixels of the test split that are right"),
        _added("mean_accuracy", REAL, "percent", "right pixels of a class, mean over the classes in the truth"),
        _added("fw_iou", REAL, "percent", "IoU of these classes, weighted by their pixels in the truth"),
        _added(
            "iou_by_class", REALS, "percent", "IoU of every class, class 0 first; null for one that is not in the truth"
        ),
        _added("sim", REAL, "similarity", "of saliency: SIM, mean over the test frames where it is defined"),
        _added("nss", REAL, "standard deviations", "NSS, mean over these frames that have fixations"),
        _added("kld", REAL, "nats", "divergence of the maps from the truth, mean over the test frames"),
        _added("auc_judd", REAL, "area", "AUC-Judd, mean over the test frames with fixations"),
        _added("s_auc", REAL, "area", "shuffled AUC, mean over these frames; negatives are fixations of other videos"),
        _added("undefined", COUNT, "frames", "test frames with a constant map, whose correlation counts as 0"),
    ),
    "complementarity": (
        *PAIR,
        Column("split", TEXT, "name", "the split that the row was measured on"),
        Column("n", COUNT, "images", "images compared"),
        Column("acc_teacher", REAL, "percent", "accuracy of the teacher"),
        Column("acc_student", REAL, "percent", "accuracy of the student"),
        Column("acc_difference", REAL, "percentage points", "teacher − student; equals pos_flips − neg_flips exactly"),
        Column("pos_flips", REAL, "percent of images", "the student is wrong and the teacher is right"),
        Column("pos_flips_se", REAL, "percentage points", "binomial standard error of `pos_flips`"),
        Column("neg_flips", REAL, "percent of images", "the teacher is wrong and the student is right"),
        Column(
            "pos_flips_untrained",
            REAL,
            "percent of images",
            "expected positive flips of an untrained teacher: those that are wrong now, by the number of classes",
            True,
        ),
        Column(
            "class_entropy", REAL, "nats", "entropy of the positive flips over the C classes; ln C if uniform", True
        ),
        Column("neg_class_entropy", REAL, "nats", "the same of the negative flips", True),
        *(
            Column(
                f"expertise_{share}",
                COUNT,
                "classes",
                f"fewest classes that hold at least {share} % of the positive flips",
                True,
            )
            for share in SHARES
        ),
        Column(
            "expertise",
            CLASSES,
            "classes",
            "the classes of `expertise_50`, most flips first; its first `expertise_20` classes are those of that area, "
            "and so on; null where the table is too large to list classes",
            True,
        ),
        Column(
            "flips_by_class", CLASSES, "images", "positive flips of every class, class 0 first; null likewise", True
        ),
        Column(
            "agreement",
            REAL,
            "percent of images",
            "images for which both predict the same class; of saliency the mean correlation of both models' maps, "
            "−1 to 1, null where answers are not kept",
            True,
        ),
        Column("kappa", REAL, "−1 to 1", "error consistency: agreement on right/wrong beyond chance", True),
        Column("double_fault", REAL, "percent of images", "both are wrong", True),
        Column("q_statistic", REAL, "−1 to 1", "Yule's Q: 1 if both fail on the same images, 0 if independent", True),
        *(
            Column(
                f"expertise_similarity_{share}",
                REAL,
                "−1 to 1",
                f"mean cosine of the class vectors in the area of `expertise_{share}`; null below two classes",
                True,
            )
            for share in SHARES
        ),
        Column("class_similarity", REAL, "−1 to 1", "mean cosine of all class vectors, to compare with", True),
        Column(
            "pos_flips_top5",
            REAL,
            "percent of images",
            "the label is among the teacher's five likeliest classes, but not among the student's",
            True,
        ),
        Column("capa", REAL, "at most 1", "agreement of the predicted probabilities beyond chance (CAPA)", True),
        Column("js_divergence", REAL, "nats", "mean Jensen-Shannon divergence of the predicted probabilities", True),
        Column("leep", REAL, "nats", "mean log-likelihood of the teacher's classes under the student's outputs", True),
        Column("cka", REAL, "0 to 1", "linear CKA of the penultimate features, unbiased", True),
        _added(
            "pixel_flips",
            REAL,
            "percent of pixels",
            "of segmentation: the student is wrong and the teacher is right; of the pixels that have a truth",
        ),
        _added(
            "pixel_flips_se",
            REAL,
            "percentage points",
            "standard error of `pixel_flips` over images, whose pixels are no independent ones",
        ),
        _added("neg_pixel_flips", REAL, "percent of pixels", "the teacher is wrong and the student is right"),
    ),
    "pairs": (
        *PAIR,
        Column("reason", TEXT, "text", "the rule that chose the pair", holds_names=True),
        Column("chunk", COUNT, "index", "the student's transfer job that does the pair"),
    ),
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


TRIAL = (
    Column("experiment", TEXT, "name", "the experiment's name in `config.yaml`"),
    Column("method", TEXT, "name", "how the student was trained, or the models that answer in its place"),
    Column("seed", COUNT, "number", "seed of the student's first weights and of the data order"),
    Column("student", TEXT, "name", "the student's architecture"),
    Column("teachers", TAGS, "names", "the models that teach, or that answer together"),
    Column("uses_labels", FLAG, "flag", "true where the method uses the labels of the training images"),
    Column("trains", FLAG, "flag", "false where no student was trained"),
    KEY,
)
"""First columns of every detail table."""

ACC_SE = Column("acc_se", REAL, "percentage points", "its binomial standard error over test images")
ACC_BEST = Column("acc_best", REAL, "percent", "accuracy at the epoch with the best validation accuracy")

EXPERIMENTS: dict[str, tuple[Column, ...]] = {
    "amalgamation": (
        *TRIAL,
        Column("part", TEXT, "name", "`all` test images, or those of one teacher's classes: the teacher's name"),
        Column("classes", CLASSES, "classes", "the part's classes"),
        Column("n", COUNT, "images", "test images of the part"),
        Column("acc", REAL, "percent", "accuracy on them after the LAST epoch, among the classes of all teachers"),
        ACC_SE,
        ACC_BEST,
        Column("loss_soft", REAL, "nats", "cross-entropy with the soft targets at the end, transfer images", True),
        Column("loss_mmd", REAL, "1", "L_M at the end: squared MMD, summed over teachers and stages", True),
        Column("loss_reconstruction", REAL, "1", "L_R at the end: mean squared error, summed likewise", True),
    ),
    "flow": (
        *TRIAL,
        Column(
            "images", COUNT, "images", "transfer images that the student learnt from; null where these are all", True
        ),
        Column("n", COUNT, "images", "test images of the student's classes"),
        Column("acc", REAL, "percent", "accuracy on them after the LAST epoch, of the student alone"),
        ACC_SE,
        ACC_BEST,
        Column("epoch", COUNT, "number", "end of this epoch, counted from 1; null where nothing flows", True),
        Column("stage", TEXT, "name", "module of the student that the features flow into", True),
        Column("source", TEXT, "name", "`self`, or the teacher whose features flow", True),
        Column("source_stage", TEXT, "name", "module that these features come from", True),
        Column("weight", REAL, "1", "normalised weight of the source; those of a stage and epoch sum to 1", True),
        Column("attached", REAL, "percent", "validation accuracy then, with the features that flow in", True),
        Column("detached", REAL, "percent", "the same of the student alone", True),
    ),
}

PICTURE = "PNG, base64"

OPTIONAL: dict[str, tuple[Column, ...]] = {
    **EXPERIMENTS,
    "pictures": (
        METHOD,
        *PAIR,
        Column("seed", COUNT, "number", "seed of the training"),
        Column("why", TEXT, "name", "why the training is shown: its place among all of the method, by delta"),
        Column("delta", REAL, "percentage points", "transfer delta of the training"),
        Column("delta_se", REAL, "percentage points", "its standard error over test images"),
        Column("image_id", COUNT, "id", "the test image's position in the data set"),
        Column("names", TAGS, "names", "the classes, by their numbers in the maps"),
        Column("image", TEXT, PICTURE, "the image"),
        Column("truth", TEXT, PICTURE, "the class of every pixel, 255 where it has none; of saliency the map"),
        Column(
            "teacher_map",
            TEXT,
            PICTURE,
            "the teacher's class of every pixel; of saliency its map, the largest value 255, null where answers are "
            "not kept",
            True,
        ),
        Column("before_map", TEXT, PICTURE, "the student's before transfer, likewise", True),
        Column("after_map", TEXT, PICTURE, "the student's after the LAST epoch"),
        Column(
            "taught_map", TEXT, PICTURE, "255 where the method lets the teacher teach; null where it has no say", True
        ),
        KEY,
        _added("fixations", REALS, "0 to 1", "of saliency: x and y of each fixation in turn, as shares of the sides"),
        _added("acc_teacher", REAL, "percent", "of saliency: the correlation of the teacher's map of this frame"),
        _added("acc_before", REAL, "percent", "that of the student's before transfer"),
        _added("acc_after", REAL, "percent", "that of the student's after the LAST epoch"),
    ),
}
"""Tables that a study has where it has such experiments, or its task has maps."""
