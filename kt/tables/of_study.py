"""Tables that the stages of a study write: every column's name, dtype, unit and meaning."""

from __future__ import annotations

from kt.tables.columns import CLASSES, COUNT, FLAG, PAIR, REAL, REALS, SHARES, TAGS, TEXT, Column, added
from kt.tables.of_transfers import TRANSFERS

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
        Column("acc_se", REAL, "percentage points", "binomial standard error of `acc`; NaN of one example"),
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
        added("pixel_accuracy", REAL, "percent", "of segmentation: pixels of the test split that are right"),
        added("mean_accuracy", REAL, "percent", "right pixels of a class, mean over the classes in the truth"),
        added("fw_iou", REAL, "percent", "IoU of these classes, weighted by their pixels in the truth"),
        added(
            "iou_by_class", REALS, "percent", "IoU of every class, class 0 first; null for one that is not in the truth"
        ),
        added("sim", REAL, "similarity", "of saliency: SIM, mean over the test frames where it is defined"),
        added("nss", REAL, "standard deviations", "NSS, mean over these frames that have fixations"),
        added("kld", REAL, "nats", "divergence of the maps from the truth, mean over the test frames"),
        added("auc_judd", REAL, "area", "AUC-Judd, mean over the test frames with fixations"),
        added("s_auc", REAL, "area", "shuffled AUC, mean over these frames; negatives are fixations of other videos"),
        added("undefined", COUNT, "frames", "test frames with a constant map, whose correlation counts as 0"),
        added("game", TEXT, "id", "of a policy: the game that it plays"),
        added("train_steps", COUNT, "actions", "actions that this pipeline trained it on; given weights have none"),
        added("curve", REALS, "points", "its mean return on validation at the end of every part of that training"),
    ),
    "complementarity": (
        *PAIR,
        Column("split", TEXT, "name", "the split that the row was measured on"),
        Column("n", COUNT, "images", "images compared"),
        Column("acc_teacher", REAL, "percent", "accuracy of the teacher"),
        Column("acc_student", REAL, "percent", "accuracy of the student"),
        Column("acc_difference", REAL, "percentage points", "teacher − student; equals pos_flips − neg_flips exactly"),
        Column("pos_flips", REAL, "percent of images", "the student is wrong and the teacher is right"),
        Column("pos_flips_se", REAL, "percentage points", "binomial standard error of `pos_flips`; NaN of one image"),
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
        added(
            "pixel_flips",
            REAL,
            "percent of pixels",
            "of segmentation: the student is wrong and the teacher is right; of the pixels that have a truth",
        ),
        added(
            "pixel_flips_se",
            REAL,
            "percentage points",
            "standard error of `pixel_flips` over images, whose pixels are no independent ones",
        ),
        added("neg_pixel_flips", REAL, "percent of pixels", "the teacher is wrong and the student is right"),
    ),
    "pairs": (
        *PAIR,
        Column("reason", TEXT, "text", "the rule that chose the pair", holds_names=True),
        Column("chunk", COUNT, "index", "the student's transfer job that does the pair"),
    ),
    **TRANSFERS,
}
