import re
from html.parser import HTMLParser

import pytest
import tables

from kt.analysis.describe import answer
from kt.errors import KtError
from kt.figures import EXPERIMENTS, FIGURES, draw
from kt.report import code, render
from kt.report.captions import CAPTIONS

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


def report(folder, study, title="A study", config="title: x\n"):
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    source = tables.write(folder / "tables", study)
    return render(source, figures, config, {"python": "3.11.0", "torch": "2.11"}, title, tables.EQUAL_WITHIN)


@pytest.fixture(scope="module")
def study():
    return tables.study(models=4)


@pytest.fixture(scope="module")
def page(tmp_path_factory, study):
    folder = tmp_path_factory.mktemp("report")
    draw(tables.write(folder / "tables", study), folder / "figures")
    return report(folder, study)


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
    assert ids == ["asked", "answer", "summary", "figures", "zoo", "pairs", "methods", "reproduce"]


def test_answer_is_the_one_that_the_tables_give(page, study):
    words = answer(study["methods"], study["transfers"], study["complementarity"], tables.EQUAL_WITHIN)
    assert words.replace("`", "") in Page(page).text


def test_summary_shows_every_method_with_its_error_and_success(page, study):
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page.split('id="summary"')[1].split("</table>")[0], re.S)
    shown = {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}
    assert list(shown) == ["kl_dp", "kl_dp_unsup", "kl", "finetune (control)", "self (control)"]
    for row in study["methods"].query("group == 'all'").itertuples():
        cells = shown[f"{row.method} (control)" if row.control else row.method]
        value = f"{row.delta:+.2f} ± {row.delta_se:.2f}".replace("-", "−")
        assert cells[:3] == [value, f"{row.success:.0f}", str(row.pairs)]


def test_every_figure_has_a_caption_a_text_alternative_and_a_size(page):
    parsed = Page(page)
    assert set(CAPTIONS) == {*FIGURES, *EXPERIMENTS}
    assert len(parsed.all("img")) == len(FIGURES)
    assert all(len(image["alt"]) > 40 and int(image["width"]) > 0 for image in parsed.all("img"))
    for caption in (CAPTIONS[name] for name in FIGURES):
        assert caption.reading.replace("`", "") in parsed.text


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
    assert "no transfer finished" in parsed.text


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
    with pytest.raises(KtError, match=r"zoo\.parquet: no such file"):
        render(tmp_path, tmp_path, "", {}, "t", 2.0)
