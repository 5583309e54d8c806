"""Tables that a study has where it has such experiments, or its task has maps."""

from __future__ import annotations

from kt.tables.columns import CLASSES, COUNT, FLAG, KEY, METHOD, PAIR, REAL, REALS, TAGS, TEXT, Column, added

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
    "returns": (
        *TRIAL,
        Column("game", TEXT, "id", "the student's game; a study of policies has this table, its metric is the return"),
        Column("n", COUNT, "episodes", "test episodes"),
        Column("acc", REAL, "points", "mean return of these after the LAST evaluation, of the student alone"),
        Column("acc_se", REAL, "points", "its standard error over test episodes"),
        Column("acc_best", REAL, "points", "the same at the evaluation with the best return on validation"),
        Column("epoch", COUNT, "number", "evaluation, counted from 1"),
        Column("steps", COUNT, "actions", "actions of the training until then, of all copies of the game together"),
        Column("acc_validation", REAL, "points", "mean return of the student alone then, on validation episodes"),
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
        added("fixations", REALS, "0 to 1", "of saliency: x and y of each fixation in turn, as shares of the sides"),
        added("acc_teacher", REAL, "percent", "of saliency: the correlation of the teacher's map of this frame"),
        added("acc_before", REAL, "percent", "that of the student's before transfer"),
        added("acc_after", REAL, "percent", "that of the student's after the LAST epoch"),
    ),
}
