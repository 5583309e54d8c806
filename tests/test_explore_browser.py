"""The page to explore in a real browser: its counts, hover, keys and CSV are those of the tables."""

import csv
import io
import json

import pytest
import tables
from browser import CHROMIUM, Tab

from kt.analysis.deltas import PAIR, pair_deltas
from kt.analysis.wording import signed, with_error
from kt.figures.tables import Tables
from kt.report.explore import render

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

CLASSES, SIZES = [f"digit {i}" for i in range(10)], list(range(90, 100))


@pytest.fixture(scope="module")
def study():
    made = tables.study(models=6, seeds=2)
    made["zoo"]["params"] = [100, 200, 300, 400, 500, 600]
    return made


@pytest.fixture(scope="module", params=[(1280, False), (390, True)], ids=["desk, light", "telephone, dark"])
def tab(study, tmp_path_factory, request):
    width, dark = request.param
    folder = tmp_path_factory.mktemp("explore")
    made = Tables.of(study, class_names=tuple(CLASSES), class_sizes=tuple(SIZES))
    (folder / "explore.html").write_text(render(made, "A study", tables.EQUAL_WITHIN), "utf-8")
    tab = Tab(folder / "profile", width, dark)
    tab.open(folder / "explore.html", "document.documentElement.hasAttribute('data-ready')")
    assert (tab.run("innerWidth"), tab.run("dark.matches")) == request.param
    yield tab
    assert tab.complaints() == []
    tab.close()


@pytest.fixture
def page(tab):
    """The page as it opens."""
    tab.run("document.getElementById('narrow').open = true")
    tab.run("document.getElementById('reset').click()")
    tab.frame()
    return tab


def choose(page, **values):
    """Set controls by their names, as a user does."""
    for name, value in values.items():
        act = "control.checked = value" if value is True else "control.value = value"
        page.run(f"""(() => {{
          const control = document.getElementById({name.replace("_", ".")!r}), value = {json.dumps(value)};
          {act};
          control.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }})()""")
        page.frame()


def words(page, part):
    """The lines of a part of the page as they are seen."""
    return page.run(f"document.querySelector({part!r}).innerText").splitlines()


def count(page):
    return words(page, "#count")[0]


def middle(page):
    """The middle of the plot, where a point stands that is alone."""
    page.run("document.getElementById('plot').scrollIntoView({ block: 'center' })")
    box = page.run("""(() => {
      const inside = (root, part) => root.shadowRoot.querySelector(part);
      const surface = inside(inside(document.querySelector(".place *"), ".bk-Canvas"), ".bk-events");
      return surface.querySelector(".bk-CartesianFrame").getBoundingClientRect().toJSON();
    })()""")
    return box["left"] + box["width"] / 2, box["top"] + box["height"] / 2


def deltas(study):
    found = pair_deltas(study["transfers"], study["complementarity"])
    return found[~found["control"]].set_index(["method", *PAIR])


def test_it_fits_the_screen_and_follows_its_scheme(page):
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    small = (
        "[...document.querySelectorAll('button:not(.link), select, [type=search]')].filter(c => c.offsetHeight < 30)"
    )
    assert page.run(f"{small}.length") == 0
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if page.run("dark.matches") else "rgb(255, 255, 255)")
    page.run("document.getElementById('plot').focus()")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "hidden"


def test_filters_change_what_is_counted(page, study):
    rows, kinds = deltas(study), study["zoo"].set_index("name")["kind"]
    weaker = rows[rows["acc_difference"] < -tables.EQUAL_WITHIN]
    teachers = kinds[weaker.index.get_level_values("teacher")]
    assert count(page) == f"{6 * 5} of {3 * 30} transfers shown"
    choose(page, method="")
    assert count(page) == "90 of 90 transfers shown"
    choose(page, gap="weaker")
    assert 0 < len(weaker) < 90
    assert count(page) == f"{len(weaker)} of 90 transfers shown"
    choose(page, teacher_kind="transformer")
    assert count(page) == f"{(teachers == 'transformer').sum()} of 90 transfers shown"
    choose(page, teacher_kind="", gap="", search="model_3 > model_0")
    assert count(page) == "3 of 90 transfers shown"
    choose(page, search="nobody")
    assert count(page) == "0 of 90 transfers shown"


def test_hover_tells_the_tables_own_numbers_and_a_click_opens_the_pair(page, study):
    row = deltas(study).loc[("kl", "model_3", "model_0")]
    control = study["transfers"].query("method == 'self' and teacher == 'model_3' and student == 'model_0'")["delta"]
    choose(page, method="kl", search="model_3 > model_0")
    page.move(*middle(page))
    assert words(page, "#hover") == [
        "model_3 → model_0 · kl",
        f"accuracy, teacher − student: {signed(row['acc_difference'])} pp",
        f"transfer delta: {with_error(row['delta'], row['delta_se'])} pp",
        f"transfer delta of the control: {signed(control.mean())} pp",
        "seeds: 2",
    ]
    page.click(*middle(page))
    assert words(page, "#detail")[0] == "model_3 → model_0"


def test_a_pair_is_told_with_its_methods_and_its_classes_by_name(page, study):
    choose(page, search="model_3 > model_0")
    page.run("document.querySelector('#rows button').click()")
    lines = words(page, "#detail")
    for method in ("kl", "kl_dp", "kl_dp_unsup"):
        row = deltas(study).loc[(method, "model_3", "model_0")]
        assert any(line.startswith(f"{method}\t{with_error(row['delta'], row['delta_se'])}\t") for line in lines)
    for control in ("self", "finetune"):
        row = study["transfers"].query("method == @control and student == 'model_0'")[["delta", "delta_se"]].mean()
        told = f"{control} (control)\t{with_error(row['delta'], row['delta_se'])}\t"
        assert any(line.startswith(told) for line in lines)
    scores = study["complementarity"].set_index(PAIR)["flips_by_class"]
    gained, lost = scores["model_3", "model_0"], scores["model_0", "model_3"]
    assert f"The teacher knows {(gained > lost).sum()} classes better" in lines
    for name, size, more, less in zip(CLASSES, SIZES, gained, lost, strict=True):
        assert more == 0 or any(line.startswith(f"{name}\t{size}\t{more}\t{less}\t") for line in lines)
    page.press("Escape")
    assert words(page, "#detail")[0].startswith("Select a point")


def test_keys_go_through_the_points_and_a_model_is_seen_in_both_roles(page, study):
    rows = deltas(study).loc["kl"].reset_index()
    first = rows.sort_values(["acc_difference", "delta"]).iloc[0]
    choose(page, method="kl")
    page.run("document.getElementById('plot').focus()")
    page.press("ArrowRight")
    assert words(page, "#hover")[0] == f"{first['teacher']} → {first['student']} · kl"
    page.press("Enter")
    page.run("document.querySelector('#detail h2 button').click()")
    lines = words(page, "#detail")
    assert lines[0] == first["teacher"]
    for role in ("student", "teacher"):
        best = rows[rows[role] == first["teacher"]].sort_values("delta").iloc[-1]
        other = best["teacher" if role == "student" else "student"]
        (heading,) = [at for at, line in enumerate(lines) if line.endswith(f"As {role}: 5 transfers, kl")]
        assert lines[heading + 2].startswith(f"{other}\t{with_error(best['delta'], best['delta_se'])}")
    marks = page.run("[...scatter.marked.data.marker]")
    assert (marks.count("triangle"), marks.count("square")) == (5, 5)
    page.press("/")
    assert page.run("document.activeElement.id") == "search"


def test_the_address_keeps_what_is_seen(page):
    choose(page, method="kl", gap="weaker", y="knowledge_gain")
    page.run("open({ model: 2 })")
    before = count(page)
    page.wait("location.hash.includes('model_2')")
    page.run("window.before = true")
    page.call("Page.reload")
    page.wait("!window.before && document.documentElement.hasAttribute('data-ready')")
    assert count(page) == before
    assert words(page, "#detail")[0] == "model_2"
    assert page.run("document.getElementById('y').value") == "knowledge_gain"


def test_the_front_is_that_of_accuracy_after_transfer_by_the_best_teacher(page, study):
    choose(page, method="kl")
    page.run("document.getElementById('best').click()")
    ok = study["transfers"].query("method == 'kl'").groupby(PAIR, as_index=False)["acc_after"].mean()
    best, params = ok.groupby("student")["acc_after"].max(), study["zoo"].set_index("name")["params"]
    beats = [name for name in best.index if all(best[o] < best[name] for o in best.index if params[o] < params[name])]
    shown = [f"{name}\t{best[name]:.2f}\t{params[name]}" for name in sorted(beats, key=lambda n: -best[n])]
    assert count(page) == "6 of 6 models shown"
    assert words(page, "#rows tbody") == shown
    assert "reads too high" in " ".join(words(page, "#note"))


@pytest.mark.parametrize("view", ["transfers", "pairs", "models"])
def test_every_column_can_be_an_axis_and_a_colour(page, view):
    if page.run("innerWidth") < 500:
        pytest.skip("the same at any width")
    page.run(f"change(start({view!r}))")
    columns, rows = page.run("[...view().columns.keys()]"), count(page)
    assert len(columns) > 15
    for control in ("x", "y"):
        assert page.run(f"[...document.getElementById({control!r}).options].map(option => option.value)") == columns
    page.run("for (const x of view().columns.keys()) change({ ...state, x }, 'axes')")
    for colour in page.run("[...document.getElementById('colour').options].map(option => option.value)"):
        choose(page, colour=colour)
        keys = len(words(page, "#keys")) if colour else 0
        assert keys == (page.run("new Set(rows.map(view().columns.get(state.colour).code)).size") if colour else 0)
    page.frame()
    assert count(page) == rows


def test_the_saved_rows_have_every_digit_and_the_names_of_the_tables(page, study):
    choose(page, method="kl", search="model_3 > model_0")
    (row,) = csv.DictReader(io.StringIO(page.run("csv(view(), rows)")))
    own = deltas(study).loc[("kl", "model_3", "model_0")]
    scores = study["complementarity"].set_index(PAIR).loc[("model_3", "model_0")]
    assert (row["teacher"], row["student"], row["method"]) == ("model_3", "model_0", "kl")
    assert float(row["delta"]) == own["delta"]
    assert float(row["delta_se"]) == own["delta_se"]
    for name in ("pos_flips", "neg_flips", "kappa", "acc_teacher"):
        assert float(row[name]) == scores[name]
    assert not any(name.startswith(("teacher.", "same_")) for name in row)


def test_points_that_were_dragged_over_are_what_is_saved(page):
    choose(page, method="kl")
    page.run("scatter.source.selected.indices = [1, 2, 5]")
    assert count(page) == "30 of 90 transfers shown, 3 selected"
    assert words(page, "#save") == ["Save 3 selected as CSV"]
    assert page.run("chosen") == page.run("[1, 2, 5].map(at => scatter.source.data.row[at])")
