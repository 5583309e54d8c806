import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kt.errors import KtError
from kt.figures import published
from kt.figures.captions import CAPTIONS, OF_ANALYSIS
from kt.figures.complementarity import even_areas, even_entropy, telling
from kt.figures.draw import FIGURES, draw
from kt.figures.experiments import amalgamation
from kt.figures.style import RC, Drawing, log_scale, save
from kt.figures.tables import Tables
from kt.report.grids import experiments
from kt.tables import schema
from kt.tables.columns import SHARES
from kt.tables.of_experiments import OPTIONAL
from kt.transfer.method import registry

NAMES = set(CAPTIONS)


def failing():
    study = tables.study(models=4)
    tables.fail(study, study["transfers"]["method"].eq("kl") | study["transfers"]["student"].eq("model_0"))
    return study


def all_failed():
    study = tables.study(models=3)
    tables.fail(study, study["transfers"]["seed"] >= 0)
    return study


def unknown_kinds():
    study = tables.study(models=2)
    study["zoo"]["kind"] = None
    return study


def one_family_and_size():
    study = tables.study(models=5, effects={"kl_dp": lambda gap: 1.0, "self": lambda gap: 0.0})
    study["zoo"]["kind"] = "cnn"
    return study


def unmeasured():
    """What a table may lack: shares, rates, times, lists of classes and similarities."""
    study = tables.study(models=4, seeds=1)
    study["transfers"][["teacher_share", "transfer_rate", "seconds"]] = None
    scores = study["complementarity"]
    study["complementarity"] = scores.assign(
        flips_by_class=None, expertise=None, kappa=np.nan, **{f"expertise_similarity_{s}": np.nan for s in SHARES}
    )
    return study


STUDIES = {
    "eight": tables.study,
    "three_perfect": lambda: tables.study(models=3, seeds=1, effects={"kl": lambda gap: 0.0}, accuracy=(1.0, 1.0)),
    "many_models_and_classes": lambda: tables.study(
        models=60, seeds=1, classes=60, effects={"kl": lambda gap: gap, "self": lambda gap: 0.0}
    ),
    "failing": failing,
    "all_failed": all_failed,
    "two_of_unknown_kind": unknown_kinds,
    "one_family_and_size": one_family_and_size,
    "unmeasured": unmeasured,
    "groups": lambda: tables.with_groups(tables.study(models=5, seeds=1)),
    "controls_only": lambda: tables.study(models=3, effects={"self": lambda gap: 0.0}),
    "scenes": lambda: tables.whole(tables.scenes(), tables.SEGMENTATION.words, tables.THINGS),
    "named": lambda: tables.whole(tables.study(models=4, seeds=1), classes=named(10)),
    "many_named": lambda: tables.whole(tables.study(models=4, seeds=1, classes=30), classes=named(30)),
    "more_named": lambda: tables.whole(tables.study(models=4, seeds=1, classes=31), classes=named(31)),
}


def named(classes):
    return [f"{label} is a class with a name" for label in range(classes)]


@cache
def drawings_of(name):
    return list(drawings(STUDIES[name]()))


def drawings(study):
    data = study if isinstance(study, Tables) else tables.whole(study)
    with mpl.rc_context(RC):
        for name, function in FIGURES.items():
            drawing = function(data)
            FigureCanvasAgg(drawing.figure).draw()
            yield name, drawing


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def ticks_out_of_view(axes):
    """Labels that matplotlib keeps and does not draw: of ticks beyond the limits, and of axes that are off."""
    for place, labels, limits in (
        (0, axes.get_xticklabels(), axes.get_xlim()),
        (1, axes.get_yticklabels(), axes.get_ylim()),
    ):
        yield from (t for t in labels if not (axes.axison and min(limits) <= t.get_position()[place] <= max(limits)))


def test_the_figures_have_the_names_that_the_pipeline_asks_for():
    assert set(FIGURES) == NAMES


@pytest.mark.parametrize("study", STUDIES)
def test_no_text_is_cut_off_or_too_small_in(study):
    for name, drawing in drawings_of(study):
        box = drawing.figure.bbox
        beyond = [text for axes in drawing.figure.axes for text in ticks_out_of_view(axes)]
        for text in texts(drawing.figure):
            extent = text.get_window_extent()
            inside = extent.x0 >= -1 and extent.y0 >= -1 and extent.x1 <= box.x1 + 1 and extent.y1 <= box.y1 + 1
            assert inside or text in beyond, (name, text.get_text())
            assert text.get_fontsize() >= 7, (name, text.get_text())


@pytest.mark.parametrize("study", ["eight", "many_models_and_classes", "failing", "scenes", "named", "many_named"])
def test_tick_labels_do_not_overlap_in(study):
    for name, drawing in drawings_of(study):
        for axes in drawing.figure.axes:
            for labels, low, high in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels(), "y0", "y1")):
                extents = sorted((t.get_window_extent() for t in labels if t.get_text()), key=lambda e: getattr(e, low))
                for one, next_one in pairwise(extents):
                    assert getattr(one, high) <= getattr(next_one, low) + 1, name


def test_figures_say_what_they_rest_on():
    for name, drawing in drawings_of("eight"):
        if drawing.missing:
            assert name in {"several_teachers", "teacher_share", *OPTIONAL}
            continue
        footer = drawing.figure.get_supxlabel().replace("\n", " ")
        assert "{" not in "".join(text.get_text() for text in texts(drawing.figure)), name
        assert "56 ordered pairs" in footer, name
        assert "1,000 test images" in footer, name
        assert "standard error" in footer, name
        if CAPTIONS[name].section != "knows":
            assert "2 seeds" in footer, name
        unit = ("points", "pp", "percent", "%", "test images", "(number)", "student", "R²", "−1 to 1")
        labelled = [axes for axes in drawing.figure.axes if axes.axison and axes.get_xlabel()]
        assert labelled, name
        assert all(any(u in axes.get_xlabel() for u in unit) for axes in labelled), name


def test_figures_of_segmentation_count_pixels_and_say_so():
    found, scores = dict(drawings_of("scenes")), tables.scenes()["complementarity"]
    heatmap, spread, classes = (found[f"flips_{name}"] for name in ("heatmap", "concentration", "by_class"))
    assert heatmap.data["pixel_flips"].tolist() == scores["pixel_flips"].tolist()
    assert "positive flips (% of test pixels)" in [text.get_text() for text in texts(heatmap.figure)]
    assert [axes.get_xlabel() for axes in spread.figure.axes] == [
        *("positive flips (% of test pixels)", "share of positive flips (%)"),
    ]
    assert spread.data["flips"].tolist() == scores["pixel_flips"].tolist()
    assert [axes.get_ylabel() for axes in classes.figure.axes] == ["positive flips (test pixels)", "", ""]
    assert "no errors are given" in classes.figure.get_supxlabel().replace("\n", " ")
    assert classes.data["flips_se"].isna().all()
    of_images = found["flips_vs_accuracy"].figure.axes[0]
    assert of_images.get_ylabel() == "positive flips (percentage points of mean IoU)"
    (of_share,) = found["teacher_share"].figure.axes
    assert of_share.get_ylabel() == "images or pixels that the teacher teaches (%)"
    for name, drawing in found.items():
        assert drawing.missing is None or name in {"several_teachers", *OPTIONAL}, name
        assert not any("accurac" in text.get_text() for text in texts(drawing.figure)), name


def test_errors_of_one_image_are_said_to_be_unknown():
    study = tables.study(models=3, seeds=1)
    study["complementarity"]["pos_flips_se"] = study["transfers"]["delta_se"] = np.nan
    data = Tables.of(study)
    for name in ("flips_vs_accuracy", "delta_vs_accuracy"):
        drawing = FIGURES[name](data)
        assert "errors are unknown: one image gives none" in drawing.figure.get_supxlabel().replace("\n", " "), name


def test_files_of_a_figure_name_the_metric_of_the_task(tmp_path):
    data = pd.DataFrame({"acc_difference": [1.0], "pos_flips": [2.0], "property": ["student_acc"]})
    save(Drawing(Figure(), data), tmp_path, "some", "miou")
    assert pd.read_csv(tmp_path / "some.csv").to_dict("list") == {
        "miou_difference": [1.0],
        "pos_flips": [2.0],
        "property": ["student_miou"],
    }


@pytest.mark.parametrize(
    ("study", "names"),
    [("scenes", list(tables.THINGS)), ("named", named(10)), ("many_named", named(30)), ("more_named", named(31))],
)
def test_classes_are_shown_by_name(study, names):
    (drawing,) = [d for n, d in drawings_of(study) if n == "flips_by_class"]
    for _, rows in drawing.data.groupby("rule"):
        assert rows["name"].tolist() == names
    shown = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    if len(names) <= 30:
        ticks = [tick.get_text() for tick in drawing.figure.axes[-1].get_xticklabels()]
        assert (ticks, drawing.figure.axes[-1].get_xlabel()) == (shown, "class (name)")
    else:
        for axes, (_, rows) in zip(drawing.figure.axes, drawing.data.groupby("rule", sort=False), strict=True):
            first = rows.sort_values("flips", ascending=False, kind="stable")["class"].tolist()[:3]
            assert axes.get_xlabel().splitlines()[1:] == [shown[label] for label in first]


def test_failed_trainings_are_counted_under_the_figure():
    (footer,) = [d.figure.get_supxlabel() for n, d in drawings_of("failing") if n == "delta_by_method"]
    assert "failed trainings left out" in footer


def test_what_is_drawn_is_what_the_tables_say(tmp_path):
    study = tables.study()
    analysed = tables.analysed(study)
    analysed.write(tmp_path / "analysis")
    draw(tables.write(tmp_path / "tables", study), tmp_path / "figures", analysis=tmp_path / "analysis")
    data = {name: pd.read_csv(tmp_path / "figures" / f"{name}.csv") for name in NAMES - {"several_teachers", *OPTIONAL}}
    scores, methods = study["complementarity"], study["methods"].query("group == 'all'").set_index("method")
    means = data["delta_by_method"].groupby("method")["delta"].mean()
    assert means.to_dict() == pytest.approx(methods["delta"].to_dict())
    assert data["flips_vs_accuracy"]["pos_flips"].tolist() == pytest.approx(scores["pos_flips"].tolist())
    assert data["flips_vs_accuracy"]["kinds"].value_counts().to_dict() == {"different kinds": 42, "same kind": 14}
    success = data["success_by_method"].query("role == 'student'").groupby("method")["success"].mean()
    assert success.to_dict() == pytest.approx(methods["success"].to_dict())  # every student has as many teachers
    ladder, shown = analysed.tables["ladder"], data["predictor_ladder"]
    assert shown["r2"].tolist() == pytest.approx(ladder[ladder["method"].isin(set(shown["method"]))]["r2"].tolist())
    weaker = data["delta_by_method"].query("group == 'weaker' and method == 'kl'")
    expected = study["methods"].query("group == 'weaker' and method == 'kl'").iloc[0]
    assert (len(weaker), weaker["delta"].mean()) == pytest.approx((expected["pairs"], expected["delta"]))
    for (teacher, student), rows in data["flips_by_class"].groupby(["teacher", "student"]):
        expected = scores.set_index(["teacher", "student"])["flips_by_class"][teacher, student]
        assert rows["flips"].tolist() == list(expected)


def test_the_figure_of_classes_says_where_the_table_lists_none(tmp_path):
    study = tables.study()
    study["complementarity"] = study["complementarity"].assign(flips_by_class=None, expertise=None)
    draw(tables.write(tmp_path / "tables", study), tmp_path / "figures")
    assert len(pd.read_csv(tmp_path / "figures/flips_by_class.csv")) == 0
    assert len(pd.read_csv(tmp_path / "figures/flips_vs_accuracy.csv")) == 56


def test_points_of_a_panel_are_the_pairs_of_its_method():
    (drawing,) = [d for n, d in drawings_of("eight") if n == "delta_vs_accuracy"]
    panels = {axes.get_title(loc="left").split(",")[0]: axes for axes in drawing.figure.axes if axes.axison}
    assert set(panels) == {"kl", "kl_dp", "kl_dp_unsup", "self (control)", "finetune (control)"}
    drawn = np.vstack([c.get_offsets() for c in panels["kl"].collections if len(c.get_offsets()) > 1])
    of_kl = drawing.data[drawing.data["method"] == "kl"]
    np.testing.assert_allclose(np.sort(drawn[:, 1]), np.sort(of_kl["delta"]))


def test_a_control_has_one_point_a_student():
    (drawing,) = [d for n, d in drawings_of("eight") if n == "delta_by_method"]
    points = [c.get_offsets() for c in drawing.figure.axes[0].collections if c.get_label() == "student of a control"]
    students = drawing.data[drawing.data["control"]].drop_duplicates(["method", "student"])
    assert sum(map(len, points)) == len(students) == 16


def test_files_are_written_at_200_dpi_and_repeat_byte_for_byte(tmp_path):
    source = tables.write(tmp_path / "tables", tables.study(models=3))
    for out in ("one", "two"):
        draw(source, tmp_path / out, ["flips_heatmap", "delta_by_method"])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    kinds = ("csv", "pdf", "png")
    assert files == [f"{name}.{kind}" for name in ("delta_by_method", "flips_heatmap") for kind in kinds]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    with Image.open(tmp_path / "one" / "delta_by_method.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.width == 1400


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(mpl.rcParams)
    draw(tables.write(tmp_path, tables.study(models=2, seeds=1)), tmp_path, ["delta_by_method"])
    assert dict(mpl.rcParams) == before


def test_an_unknown_figure_is_named_with_the_nearest(tmp_path):
    with pytest.raises(KtError, match="did you mean 'flips_heatmap'"):
        draw(tmp_path, tmp_path, ["flip_heatmap"])


def test_telling_pairs_follow_their_rules():
    rows = [  # teacher, student, acc_difference, pos_flips, class_entropy
        ("a", "b", -1.0, 3.0, 1.0),
        ("b", "c", -5.0, 4.0, 2.0),
        ("c", "a", 9.0, 9.0, 0.5),
        ("a", "c", 5.0, 8.0, 2.2),
        ("c", "b", 1.0, 0.1, 0.0),
        ("b", "a", 1.0, 0.0, np.nan),
    ]
    scores = pd.DataFrame(rows, columns=["teacher", "student", "acc_difference", "pos_flips", "class_entropy"])
    assert telling(scores) == [("weaker teacher, most flips", 1), ("most concentrated", 2), ("most uniform", 3)]
    assert telling(scores.iloc[[3]]) == [("most concentrated", 3)]
    assert telling(scores.iloc[[5]]) == []


def test_figures_without_an_analysis_say_how_to_get_one(tmp_path):
    draw(tables.write(tmp_path / "tables", tables.study(models=3)), tmp_path, ["predictor_ladder", "success_by_method"])
    for name in ("predictor_ladder", "success_by_method"):
        assert len(pd.read_csv(tmp_path / f"{name}.csv")) == 0
        with Image.open(tmp_path / f"{name}.png") as image:
            assert "kt analyse" in image.info["missing"]


def test_figures_that_are_drawn_beside_the_analysis_do_not_look_at_it():
    class Absent(dict):
        def __missing__(self, name):
            raise AssertionError(f"the table {name} of the analysis")

    data = replace(Tables.of(tables.study()), analysis=Absent())
    for name in NAMES - {*OPTIONAL, *OF_ANALYSIS}:
        assert FIGURES[name](data).figure.axes


def test_too_few_models_leave_predictions_and_properties_undrawn():
    found = {name: drawing.missing for name, drawing in drawings_of("three_perfect")}
    assert "too few models" in found["predictor_ladder"]
    assert "too few models" in found["property_effects"]
    assert found["delta_by_method"] is None


RAN = {  # as published, but for what the last two change
    "kl": {"temperature": 1.0},
    "kl_dp": {"temperature": 1},
    "xekl": {"alpha": 0.25, "label_smoothing": 0.0, "temperature": 1.0},
    "kl_dp_unsup": None,
}


def test_published_values_stand_beside_methods_with_the_published_parameters_alone():
    texts_of = {name: parameters and json.dumps(parameters) for name, parameters in RAN.items()}
    methods = pd.DataFrame({"method": list(texts_of), "parameters": list(texts_of.values())})
    study = tables.study(models=2, seeds=1) | {"methods": methods}
    same, other = (Tables.of(study, data=data) for data in ("imagenet-1k", "digits"))
    assert set(published.comparable(published.SUCCESS, same)) == {"kl", "kl_dp"}
    assert published.comparable(published.SUCCESS_OF_KIND, same) == published.SUCCESS_OF_KIND
    assert published.comparable(published.SUCCESS, other) == {}
    assert set(published.SUCCESS) == set(published.PARAMETERS)
    for name, parameters in published.PARAMETERS.items():
        assert set(parameters) == set(registry()[name]().parameters())
        as_published = registry()[name].model_validate(parameters).parameters()
        assert as_published == parameters
        assert (registry()[name]().parameters() == parameters) == (name != "xekl_mcl")


def test_no_published_value_is_drawn_beside_other_parameters_or_another_data_set():
    study = tables.study(models=6, seeds=1, effects={"kl_dp": lambda gap: 1.0, "self": lambda gap: 0.0})
    analysis = tables.analysed(study).tables
    one, four = '{"temperature": 1.0}', '{"temperature": 4.0}'
    for text, data, drawn in (
        (one, "ImageNet", True),
        (four, "imagenet", False),
        (None, "imagenet", False),
        (one, "digits", False),
        (one, "", False),
    ):
        whole = Tables.of(study | {"methods": study["methods"].assign(parameters=text)}, analysis, 2.0, data=data)
        for name in ("success_by_method", "delta_by_method", "delta_by_kind"):
            figure = FIGURES[name](whole).figure
            stars = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "*"]
            assert bool(stars) == drawn, name


def test_groups_of_teachers_are_drawn_where_there_are_some():
    (drawing,) = [d for n, d in drawings_of("groups") if n == "several_teachers"]
    assert drawing.missing is None
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["parallel, 3 teachers\n5 students", "soup, 3 teachers\n5 students"]
    assert drawing.data.set_index("method")["delta"].to_dict() == pytest.approx({"parallel": 4.0, "soup": 5.0})
    assert "5 students, 1 seed" in drawing.figure.get_supxlabel()


def test_equal_within_is_what_the_analysis_took():
    assert tables.whole(tables.study(models=5, seeds=1)).equal_within == tables.EQUAL_WITHIN
    assert Tables.of(tables.study(models=2, seeds=1)).equal_within == 0


def test_equal_within_is_read_from_the_tables_and_not_guessed(tmp_path):
    study = tables.study(models=3, seeds=1)
    folder = tables.write(tmp_path, study)
    assert Tables.read(folder).equal_within == 0
    methods = schema.build("methods", study["methods"].to_dict("list"))
    schema.write(folder / "methods.parquet", "methods", methods, {"equal_within": "1.5"})
    assert Tables.read(folder).equal_within == 1.5


def test_entropy_of_flips_spread_at_random_by_hand():
    # one flip lies in one class; two lie in the same class with chance 1/C, else they give ln 2
    assert even_entropy([1, 2], 4) == pytest.approx([0.0, 0.75 * np.log(2)])
    assert even_entropy([5000], 10)[0] == pytest.approx(np.log(10), abs=0.001)


def test_areas_of_flips_spread_at_random_are_those_of_a_slow_count():
    dealt = np.random.default_rng(0).multinomial([30, 7], np.full(5, 0.2))
    for row, flips, counts in zip(even_areas([30, 7], 5), (30, 7), dealt, strict=True):
        largest_first = sorted(counts, reverse=True)
        for place, share in enumerate(SHARES):
            k = next(k for k in range(1, 6) if 100 * sum(largest_first[:k]) >= share * flips)
            assert row[place] == k


def test_accuracies_of_an_amalgamation_are_means_over_seeds_with_paired_differences():
    rows = [
        {"experiment": "x", "method": method, "part": "all", "seed": seed, "n": 100, "acc": acc, "acc_se": 4.0,
         "trains": method != "ensemble_logits"}
        for method, of_seeds in {"cfl": (80.0, 84.0), "kd": (79.0, 81.0), "ensemble_logits": (82.0,)}.items()
        for seed, acc in enumerate(of_seeds)
    ]  # fmt: skip
    study = tables.study(models=2, seeds=1)
    drawing = amalgamation(Tables.of({**study, "amalgamation": pd.DataFrame(rows)}))
    found = drawing.data.set_index("method")
    assert found.loc["cfl", ["acc", "acc_se", "gain", "gain_se"]].tolist() == [82.0, 2.0, 2.0, 1.0]
    assert found.loc["kd", "gain"] != found.loc["kd", "gain"], "nothing to compare with itself"
    assert found.loc["ensemble_logits", ["acc", "acc_se", "seeds"]].tolist() == [82.0, 4.0, 1]
    assert drawing.figure.axes[0].texts[0].get_text() == "82.0 ± 2.0  (+2.00 ± 1.00)"
    assert amalgamation(Tables.of(study)).missing == "no amalgamation finished"
    assert experiments(Tables.of({**study, "amalgamation": pd.DataFrame(rows)})) == (  # two errors are not more
        "One student of several specialists: compared with plain distillation (`kd`), `cfl` is clearly better in 0 of 1"
        " experiment and clearly worse in 0 (+2.00 percentage points; 2 seeds)."
    )


def test_the_figure_of_an_experiment_is_drawn_where_its_table_is(tmp_path):
    study = tables.write(tmp_path / "tables", tables.study(models=3))
    columns = {"experiment": "x", "method": "kd", "seed": 0, "student": "a", "teachers": ["b", "c"], "key": "k"}
    columns |= {"uses_labels": False, "trains": True, "part": "all", "classes": [0], "n": 9, "acc": 50.0}
    detail = schema.build("amalgamation", [columns | {"acc_se": 1.0, "acc_best": 50.0}])
    draw(study, tmp_path / "without")
    assert not (tmp_path / "without/amalgamation.png").exists()
    schema.write(study / "amalgamation.parquet", "amalgamation", detail)
    draw(study, tmp_path / "with")
    assert (tmp_path / "with/amalgamation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e8, 2e9, ["100M", "200M", "500M", "1000M", "2000M"]),
        (211_849, 476_661, ["0.212M", "0.477M"]),  # no round number lies between them
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_and_never_fewer_than_two(low, high, labels):
    axes = Figure().subplots()
    log_scale(axes, low, high, 1e6, "M")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == labels


def test_titles_of_predictions_fit_their_panels_with_many_pairs():
    study = tables.study(models=3, seeds=1)
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"predicted": rng.normal(size=16_000), "delta": rng.normal(size=16_000)}).assign(
            method=method, rung=rung, teacher="model_0", student="model_1"
        )
        for method, rung in (("kl", "gap + pos_flips"), ("kl_dp", "all, boosted trees"), ("kl_dp_unsup", "gap + kappa"))
    ]
    with mpl.rc_context(RC):
        drawing = FIGURES["predicted_vs_measured"](Tables.of(study, {"predictions": pd.concat(frames)}))
        drawing.figure.draw_without_rendering()
    titles = [axes.title if axes.title.get_text() else axes._left_title for axes in drawing.figure.axes]
    extents = [title.get_window_extent() for title in titles]
    assert all("16,000 pairs" in title.get_text() for title in titles)
    assert all(one.x1 <= following.x0 for one, following in pairwise(extents))
    assert extents[-1].x1 <= drawing.figure.bbox.x1
    assert all(extent.y1 <= drawing.figure.bbox.y1 for extent in extents)
