"""The detail tables of experiments: every column's name, dtype, unit and meaning."""

from __future__ import annotations

from kt.tables.columns import CLASSES, COUNT, FLAG, KEY, REAL, TAGS, TEXT, Column

TRIAL = (
    Column("experiment", TEXT, "name", "the experiment's name in `config.yaml`"),
    Column("method", TEXT, "name", "how the student was made, or who answers in its place"),
    Column("seed", COUNT, "number", "seed of the student's first weights and of the data order"),
    Column("student", TEXT, "name", "the student's architecture"),
    Column("teachers", TAGS, "names", "the models that teach, or answer"),
    Column("uses_labels", FLAG, "flag", "true where the labels of the training images have a say"),
    Column("trains", FLAG, "flag", "false where no student was trained"),
    KEY,
)
"""What every row of every detail table begins with."""

ACC_SE = Column("acc_se", REAL, "percentage points", "its binomial standard error over test images")
ACC_BEST = Column("acc_best", REAL, "percent", "accuracy at the epoch that the validation split chose")

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
        Column("images", COUNT, "images", "transfer images that the student learnt from; null where it is all", True),
        Column("n", COUNT, "images", "test images of the student's classes"),
        Column("acc", REAL, "percent", "accuracy on them after the LAST epoch, of the student by itself"),
        ACC_SE,
        ACC_BEST,
        Column("epoch", COUNT, "number", "end of this epoch, counted from 1; null where nothing flows", True),
        Column("stage", TEXT, "name", "module of the student that features flow into", True),
        Column("source", TEXT, "name", "`self`, or the teacher whose features flow", True),
        Column("source_stage", TEXT, "name", "module that these features come from", True),
        Column("weight", REAL, "1", "normalised weight of the source; those of a stage and epoch sum to 1", True),
        Column("attached", REAL, "percent", "validation accuracy then, with what flows in", True),
        Column("detached", REAL, "percent", "the same of the student by itself", True),
    ),
}
