"""The report's tables that come from the study: methods, models, pairs that stand out, failures."""

from __future__ import annotations

from kt.analysis.deltas import pair_deltas
from kt.analysis.wording import number
from kt.figures.tables import Tables
from kt.report.grids import Cell, Grid, Show, count, error, grid, name, plain, signed_number

TOP = 10
MOST_FAILURES = 50


def summary(tables: Tables) -> Grid:
    """The methods: all pairs, and those with a weaker and with a stronger teacher."""
    wide = tables.methods[tables.methods["group"] == "all"].set_index("method", drop=False)
    for group in ("weaker", "stronger"):
        of_group = tables.methods[tables.methods["group"] == group].set_index("method")
        for column in ("delta", "delta_se", "success", "pairs"):
            wide = wide.assign(**{f"{group}_{column}": of_group[column].reindex(wide.index)})
    wide["shown"] = [f"{m} (control)" if c else m for m, c in zip(wide["method"], wide["control"], strict=True)]

    columns: list[tuple[str, Show]] = [("method", name("shown"))]
    for group, prefix in (("all pairs", ""), ("weaker teacher", "weaker_"), ("stronger teacher", "stronger_")):
        columns += [
            (f"{group}, points", error(f"{prefix}delta")),
            (f"{group}: success, %", plain(f"{prefix}success", 0)),
            (f"{group}: n", count(f"{prefix}pairs")),
        ]
    if wide["taught_errors_beyond"].notna().any():
        columns.append(("taught errors beyond `self`, points", error("taught_errors_beyond")))
    if wide["failed"].any():
        columns.append(("failed trainings", count("failed")))
    return grid("Transfer delta in percentage points: mean ± standard error, success rate and pairs.", wide, columns)


def zoo(tables: Tables) -> Grid:
    """The models, most accurate first."""
    frame = tables.zoo.sort_values("acc", ascending=False, kind="stable")
    frame = frame.assign(recipe=[" ".join(tags) or "–" for tags in frame["recipe"]])
    return grid(
        "The zoo. Accuracy and calibration error on the test images, ± binomial standard error.",
        frame,
        [
            ("model", name("name")),
            ("architecture", name("arch")),
            ("kind", name("kind")),
            ("parameters, thousand", plain("params", 1, 1e3)),
            ("MACs, million", plain("macs", 2, 1e6)),
            ("input, pixels", count("input_size")),
            ("accuracy, %", lambda row: Cell(f"{number(row['acc'])} ± {number(row['acc_se'])}", float(row["acc"]))),
            ("calibration error, %", plain("ece")),
            ("trained on, images", count("train_images")),
            ("training, seconds", plain("train_seconds")),
            ("pretraining", name("pretraining")),
            ("recipe", name("recipe")),
            ("licence", name("licence")),
        ],
    )


def top_pairs(tables: Tables) -> list[Grid]:
    """The most complementary pairs, and the pairs that gained and lost most."""
    flips = tables.complementarity.sort_values("pos_flips", ascending=False, kind="stable")
    weaker = flips[flips["acc_difference"] < 0]
    pair: list[tuple[str, Show]] = [("teacher", name("teacher")), ("student", name("student"))]
    scores: list[tuple[str, Show]] = [
        *pair,
        ("teacher − student, points", signed_number("acc_difference", 1)),
        (
            "positive flips, % of images",
            lambda row: Cell(f"{number(row['pos_flips'])} ± {number(row['pos_flips_se'])}", float(row["pos_flips"])),
        ),
        ("negative flips, % of images", plain("neg_flips")),
        ("class entropy, nats", plain("class_entropy", 2)),
    ]
    deltas = pair_deltas(tables.transfers, tables.complementarity)
    deltas = deltas[~deltas["control"].astype(bool)].sort_values("delta", ascending=False, kind="stable")
    transfers: list[tuple[str, Show]] = [
        *pair,
        ("method", name("method")),
        ("teacher − student, points", signed_number("acc_difference", 1)),
        ("transfer delta, points", error("delta")),
        ("transfer rate, %", plain("transfer_rate", 0)),
    ]
    over_images = "averaged over seeds, ± standard error over test images"
    grids = [
        grid("Most positive flips.", flips.head(TOP), scores),
        grid("Most positive flips from a less accurate teacher.", weaker.head(TOP), scores),
        grid(f"Largest gains, {over_images}.", deltas.head(TOP), transfers),
        grid(f"Lowest deltas, {over_images}.", deltas.tail(TOP).iloc[::-1], transfers),
    ]
    return [grid for grid in grids if grid.rows]


def failures(tables: Tables) -> Grid | None:
    """Failed trainings with their reasons; None where there is none."""
    failed = tables.transfers[tables.transfers["status"] != "ok"].drop_duplicates("key")
    if failed.empty:
        return None
    shown = failed.head(MOST_FAILURES).assign(
        teacher=lambda frame: frame["teacher"].where(~frame["control"].astype(bool), "none (control)")
    )
    more = f" The first {MOST_FAILURES} are shown." if len(failed) > MOST_FAILURES else ""
    return grid(
        f"{len(failed):,} failed trainings.{more}",
        shown,
        [
            ("teacher", name("teacher")),
            ("student", name("student")),
            ("method", name("method")),
            ("seed", count("seed")),
            ("reason", name("reason")),
        ],
    )
