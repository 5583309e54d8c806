import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tables

from kt.analysis import recommend, wording
from kt.analysis.analyse import analyse
from kt.analysis.answer import answer
from kt.analysis.deltas import PAIR
from kt.analysis.inputs import CLASSIFICATION, load
from kt.analysis.wording import caption_words
from kt.errors import KtError
from kt.figures.captions import CAPTIONS
from kt.figures.draw import FIGURES, draw
from kt.figures.tables import Tables
from kt.report import code, evidence, grids, render
from kt.report.grids import _classes
from kt.report.sections import Facts, _models
from kt.tables.of_experiments import OPTIONAL

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes, and a check that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def report(folder, study, title="A study", config="title: x\n", analysis=None):
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    data = Tables.read(tables.write(folder / "tables", study), analysis)
    return render(data, figures, config, {"python": "3.11.0", "torch": "2.11"}, title, tables.EQUAL_WITHIN)


@pytest.fixture(scope="module")
def study():
    return tables.study(models=4)


@pytest.fixture(scope="module")
def page(tmp_path_factory, study):
    folder = tmp_path_factory.mktemp("report")
    analysis = folder / "analysis"
    tables.analysed(study).write(analysis)
    draw(tables.write(folder / "tables", study), folder / "figures", analysis=analysis)
    return report(folder, study, analysis=analysis)


def test_page_is_whole_and_asks_nothing_of_the_network(page):
    parsed = Page(page)
    assert parsed.all("link") == []
    assert all("src" not in script for script in parsed.all("script"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.all("img"))
    assert not re.search(r"url\(|@import|fetch\(", page)
    targets = {attributes.get("id") for _, attributes in parsed.elements}
    assert all(a["href"][1:] in targets for a in parsed.all("a") if a["href"].startswith("#"))


def test_sections_come_in_the_order_of_a_readers_questions(page):
    ids = [attributes["id"] for attributes in Page(page).all("section")]
    questions = ["knows", "works", "whom", "predicts", "recommend", "zoo", "pairs", "limits"]
    assert ids == ["answer", "asked", *questions, "methods", "reproduce"]


def test_the_answer_is_a_headline_and_bullets_the_same_as_in_the_summary(page, study):
    made = tables.whole(study)
    found = answer(made.inputs, made.analysis, tables.EQUAL_WITHIN)
    box = page.split('<div class="answer">')[1].split("</div>")[0]
    bullets = [bullet.replace("`", "") for bullet in found.bullets]
    assert [Page(text).text for text in re.findall(r"<li>(.*?)</li>", box)] == bullets
    assert found.headline.replace("`", "") in Page(page).text
    summary = tables.analysed(study).summary
    assert all(line in summary for line in (found.headline, *found.bullets))


def test_summary_shows_every_method_with_its_error_and_success(page, study):
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page.split('id="works"')[1].split("</table>")[0], re.S)
    shown = {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}
    assert list(shown) == ["kl_dp", "kl_dp_unsup", "kl", "finetune (control)", "self (control)"]
    for row in study["methods"].query("group == 'all'").itertuples():
        cells = shown[f"{row.method} (control)" if row.control else row.method]
        value = f"{row.delta:+.2f} ± {row.delta_se:.2f}".replace("-", "−")
        assert cells[:2] == [value, f"{row.success:.0f}"]


def test_every_figure_has_a_caption_a_text_alternative_and_a_size(page):
    parsed = Page(page)
    assert set(CAPTIONS) == set(FIGURES)
    assert len(parsed.all("img")) == len(FIGURES) - len(OPTIONAL) - 1
    assert "several_teachers" not in page  # no group taught: neither a section nor an empty picture
    assert all(len(image["alt"]) > 40 and int(image["width"]) > 0 for image in parsed.all("img"))
    unseen = {"several_teachers", *OPTIONAL}
    for name, caption in CAPTIONS.items():
        told = caption.told(caption_words(CLASSIFICATION))
        assert name in unseen or told.reading.replace("`", "") in parsed.text


def test_a_figure_that_could_not_be_drawn_is_a_line_that_says_why(tmp_path):
    study = unmeasured()
    draw(tables.write(tmp_path / "tables", study), tmp_path / "figures", ["teacher_share", "delta_vs_accuracy"])
    tables.analysed(study).write(tmp_path / "analysis")
    parsed = Page(report(tmp_path, study, analysis=tmp_path / "analysis"))
    assert len(parsed.all("img")) == 1
    assert "Not drawn: “Who teaches how much”, no method divides the images" in parsed.text


def test_page_is_accessible(page):
    parsed = Page(page)
    assert parsed.all("html") == [{"lang": "en"}]
    assert len(parsed.all("h1")) == 1
    assert all(heading["scope"] in ("col", "row") for heading in parsed.all("th"))
    boxes = [a for a in parsed.all("div") if a.get("class") == "box"]
    assert len(boxes) == len(parsed.all("table"))  # every table scrolls inside its own box
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_number_cells_carry_the_value_that_they_are_sorted_by(page):
    cells = [a for a in Page(page).all("td") if a.get("class") == "number"]
    assert len(cells) > 50
    assert all(re.fullmatch(r"-?\d.*|nan|inf", cell["data-sort"]) for cell in cells)


def test_what_users_write_is_shown_and_never_run(tmp_path):
    study = tables.study(models=2, seeds=1)
    tables.fail(study, study["transfers"]["method"] == "kl", reason="error: <script>alert(1)</script>")
    page = report(tmp_path, study, title="<b>R&D</b>", config="title: </pre><script>alert(2)</script>\n")
    parsed = Page(page)
    assert "<b>R&D</b>" in parsed.text
    assert "title: </pre><script>alert(2)</script>" in parsed.text
    assert "error: <script>alert(1)</script>" in parsed.text
    assert len(parsed.all("script")) == 1


def test_code_is_escaped_before_it_is_marked():
    assert code("`a` & ``b`` <i>") == "<code>a</code> &amp; <code>b</code> &lt;i&gt;"


def test_failures_have_a_section_only_where_there_are_some(tmp_path, page):
    assert "What failed" not in page
    study = tables.study(models=3)
    tables.fail(study, study["transfers"]["method"].isin(["kl", "self"]) & study["transfers"]["seed"].eq(1))
    failed = Page(report(tmp_path, study)).text
    assert "What failed" in failed
    assert "9 failed trainings." in failed  # six pairs, and three students of the control
    assert "diverged: loss is not finite" in failed
    assert "none (control)" in failed


def test_page_copes_without_figures_and_where_everything_failed(tmp_path):
    study = tables.study(models=2, seeds=1)
    tables.fail(study, study["transfers"]["seed"] >= 0)
    parsed = Page(report(tmp_path, study))
    assert parsed.all("img") == []
    assert "No transfer has finished" in parsed.text


def test_unknown_values_are_dashes(tmp_path):
    study = tables.study(models=2, seeds=1, effects={"kl": lambda gap: 1.0, "somebody_elses": lambda gap: 2.0})
    study["zoo"][["kind", "train_images", "train_seconds"]] = None
    text = Page(report(tmp_path, study)).text
    assert not re.search(r"\b(nan|None|inf)\b", text)
    assert "somebody_elses Not a method of this version of kt." in text


def test_versions_and_configuration_are_on_the_page(page):
    text = Page(page).text
    assert re.search(r"torch\s*2\.11", text)
    assert "title: x" in text


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(KtError, match=r"transfers\.parquet: no such file"):
        render(Tables.read(tmp_path), tmp_path, "", {}, "t", 2.0)


def test_paired_differences_stand_beside_their_controls(page, study):
    section = page.split('id="works"')[1].split("</section>")[0]
    rows = dict(re.findall(r'<th scope="row">(\w+)</th>\s*<td>(\w+)</td>', section))
    assert rows == {"kl": "self", "kl_dp": "finetune", "kl_dp_unsup": "self"}
    deltas = study["transfers"].groupby(["method", *PAIR])["delta"].mean()
    difference = (deltas["kl_dp"] - deltas["finetune"]).mean()
    assert f"{difference:+.2f}".replace("-", "−") in section


def test_limits_are_on_the_page(page):
    said = page.split('id="limits"')[1].split("</section>")[0]
    assert "4 models are few" in said
    assert "Causes: models were found, not assigned" in said


def test_groups_of_teachers_have_a_section_only_where_there_are_some(tmp_path, page):
    assert 'id="several"' not in page
    study = tables.with_groups(tables.study(models=4, seeds=1))
    tables.analysed(study).write(tmp_path / "analysis")
    found = Page(report(tmp_path, study, analysis=tmp_path / "analysis"))
    assert "several" in [attributes["id"] for attributes in found.all("section")]
    assert "parallel" in found.text


def all_failed():
    study = tables.study(models=3)
    tables.fail(study, study["transfers"]["seed"] >= 0)
    return study


def unmeasured():
    study = tables.study(models=4, seeds=1)
    study["transfers"][["teacher_share", "transfer_rate", "seconds"]] = None
    study["zoo"][["kind", "family", "train_images"]] = None
    return study


@pytest.mark.parametrize(
    ("make", "said", "absent"),
    [
        (all_failed, "No transfer has finished", ["works", "whom", "predicts", "recommend"]),
        (lambda: tables.study(models=3, seeds=1), "take all numbers as a description", ["predicts"]),
        (lambda: tables.study(models=5, effects={"kl": lambda gap: 1.0}), "no control finished", ["failures"]),
        (lambda: tables.study(models=3, effects={"self": lambda gap: 0.0}), "Only controls finished", ["recommend"]),
        (unmeasured, "Variance components", ["several"]),
    ],
)
def test_little_data_makes_a_page_that_says_what_cannot_be_said(tmp_path, make, said, absent):
    study = make()
    tables.analysed(study).write(tmp_path / "analysis")
    parsed = Page(report(tmp_path, study, analysis=tmp_path / "analysis"))
    assert said in parsed.text
    assert not re.search(r"\b(nan|None|inf)\b", parsed.text)
    assert not set(absent) & {attributes["id"] for attributes in parsed.all("section")}


def test_segmentation_is_told_with_its_units_and_class_names_from_tables_to_report(tmp_path):
    words, study = tables.SEGMENTATION.words, tables.scenes()
    folder = tables.write(tmp_path / "tables", study, words, tables.THINGS)
    paths = [folder / f"{name}.parquet" for name in ("transfers", "zoo", "complementarity")]
    assert "miou_before" in pq.read_schema(paths[0]).names
    made = analyse(load(*paths), tables.EQUAL_WITHIN, bootstrap=20, draws=99)
    made.write(tmp_path / "analysis")
    draw(folder, tmp_path / "figures", [name for name in FIGURES if name.startswith("flips")])
    data = Tables.read(folder, tmp_path / "analysis")
    assert (data.task, data.class_names) == (words, tables.THINGS)
    parsed = Page(render(data, tmp_path / "figures", "title: x\n", {"python": "3"}, "A study", data.equal_within))
    story = parsed.text.partition("The methods")[0]
    for text in (story, made.summary, *(image["alt"] for image in parsed.all("img"))):
        assert not re.search(r"accurac|\bacc_|Taught errors", text), text
    pixels = study["complementarity"]["pixel_flips"].median()
    assert f"wrong on a median of {pixels:.1f} % of test pixels (20 ordered pairs)" in story
    assert "percentage points of mean IoU" in story
    assert "Mean IoU on the test images" in story
    assert "pixel flips, % of test pixels" in story
    assert "right pixels, %" in story
    best = study["zoo"].set_index("name").loc["m4", "iou_by_class"]
    assert f"traffic light {best[3]:.1f}" in " ".join(story.split())
    assert not re.search(r"\b(nan|None|inf)\b", story)


def test_of_many_classes_the_report_lists_those_that_models_differ_on():
    zoo = pd.DataFrame({"name": ["a", "b"], "iou_by_class": [np.arange(40.0), np.arange(40.0)[::-1]]})
    zoo.loc[0, "iou_by_class"][5] = np.nan
    grid = _classes(zoo, Tables.of(tables.scenes(), class_names=tuple(f"c{i}" for i in range(40))))
    shown = [row[0].text for row in grid.rows]
    assert len(shown) == 30
    assert not {"c5", "c19", "c20"} & set(shown)
    assert {"c0", "c39"} <= set(shown)
    assert shown == sorted(shown, key=lambda name: int(name[1:]))
    assert "The 30 of 40 classes" in grid.caption


def test_specialists_are_told_with_the_names_of_their_classes():
    study = tables.study(models=4, seeds=1)
    study["zoo"]["classes"] = [None, None, None, [0, 2]]
    facts = Facts(Tables.of(study, class_names=tuple(f"kind {i}" for i in range(10))), [], [], None, 0.0)
    assert "measured on these: model_3 (kind 0, kind 2)." in " ".join(_models(facts).after)


def test_a_task_without_classes_is_told_in_its_own_words_from_tables_to_report(tmp_path):
    study = tables.of_depth(tables.study(models=4, seeds=1))
    folder = tables.write(tmp_path / "tables", study, tables.DEPTH)
    paths = [folder / f"{name}.parquet" for name in ("transfers", "zoo", "complementarity")]
    assert "rho_before" in pq.read_schema(paths[0]).names
    made = analyse(load(*paths), tables.EQUAL_WITHIN / 100, bootstrap=20, draws=99)
    made.write(tmp_path / "analysis")
    draw(folder, tmp_path / "figures", analysis=tmp_path / "analysis")
    data = Tables.read(folder, tmp_path / "analysis")
    assert (data.task, data.equal_within) == (tables.DEPTH, tables.EQUAL_WITHIN / 100)
    parsed = Page(render(data, tmp_path / "figures", "title: x\n", {"python": "3"}, "A study", data.equal_within))
    story = parsed.text.partition("The methods")[0]  # methods tell of themselves
    for text in (story, made.summary.replace("train_images", ""), *(image["alt"] for image in parsed.all("img"))):
        assert not re.search(r"accura|[^_]image|percentage|\bacc_", text.replace("train_images", "")), text
    assert "test frames" in story
    assert "points of correlation" in story
    assert "Not drawn: “How concentrated the knowledge is”, the task has no classes." in story
    assert "Not drawn: “Where the knowledge lies”, the task has no classes." in story
    assert not re.search(r"\b(nan|None|inf)\b", story)
    assert "`student_rho`" in made.summary or "student_acc" not in made.summary


def test_the_section_on_teachers_has_the_numbers_of_the_command():
    study = tables.study(models=8, seeds=1)
    transfers = study["transfers"]
    untried = transfers["student"].eq("model_2") & transfers["teacher"].isin(["model_0", "model_5"])
    study["transfers"] = transfers[~untried & ~transfers["student"].eq("model_3")].reset_index(drop=True)
    data = tables.whole(study)
    method = "kl"
    shown = {
        row[0].text: [cell.text for cell in row]
        for row in evidence.recommended(data, recommend.Advisor(data.inputs, method, tables=data.analysis)).rows
    }
    for student in ("model_2", "model_3", "model_7"):
        rows = recommend.recommend(data.inputs, student, method, tables=data.analysis)
        known, left = rows[rows["measured"].notna()], rows[rows["measured"].isna()]
        expected = ["–", "–"]
        if len(known):
            best = known.iloc[0]
            expected = [best["teacher"], wording.with_error(best["measured"], best["measured_se"])]
        others = ["all are measured", "–", "–"]
        if len(left):
            first = left.iloc[0]
            others = [first["teacher"], wording.signed(first["predicted"]), wording.number(first["p_harm"], 2)]
        assert shown[student] == [student, *expected, f"{len(known)} of 7", *others]


def test_classes_of_the_pairs_that_stand_out_are_told_by_name_with_flips_both_ways_and_sizes(study):
    classes, sizes = tuple("abcdefghij"), tuple(range(90, 100))
    data = Tables.of(study, None, tables.EQUAL_WITHIN, class_names=classes, class_sizes=sizes)
    made = grids.classes_of_pairs(data)
    assert 1 <= len(made) <= 3
    by_class = data.complementarity.set_index(["teacher", "student"])["flips_by_class"]
    for shown in made:
        teacher, student = re.findall(r"`(.+?)`", shown.caption)
        rows = {row[0].text: [int(cell.sort) for cell in row[1:]] for row in shown.rows}
        assert set(rows) == set(classes)
        for label, (n, positive, negative, net) in ((classes.index(name), row) for name, row in rows.items()):
            assert n == sizes[label]
            assert (positive, negative) == (by_class[teacher, student][label], by_class[student, teacher][label])
            assert net == positive - negative
        assert [row[-1] for row in rows.values()] == sorted((row[-1] for row in rows.values()), reverse=True)
    assert len(grids.classes_of_pairs(Tables.of(study))[0].headings) == 4  # sizes are unknown
    assert grids.classes_of_pairs(Tables.of(tables.of_depth(study), task=tables.DEPTH)) == []
    one_way = {
        name: table[table["teacher"] < table["student"]] if name in ("complementarity", "transfers") else table
        for name, table in study.items()
    }
    assert grids.classes_of_pairs(Tables.of(one_way)) == []
