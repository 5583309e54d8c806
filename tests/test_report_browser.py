"""The report in Chromium, where that is installed: at the width of a desk and of a telephone, light and dark."""

import pytest
import tables
from browser import CHROMIUM, Tab

from kt.figures.captions import CAPTIONS
from kt.figures.draw import draw
from kt.figures.tables import Tables
from kt.report import render
from kt.tables.of_experiments import OPTIONAL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

PROBE = """(() => {
  const found = {
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    images: [...document.images].map(image => [image.naturalWidth, image.naturalHeight, image.width / image.height]),
  };
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  found.cut = [...document.querySelectorAll(".box")].filter(box => box.scrollWidth > box.clientWidth)
    .map(box => box.getAttribute("aria-label"));
  const table = document.querySelector("#works table"), heading = table.tHead.rows[0].cells[1];
  const shown = () => [...table.tBodies[0].rows].map(row => Number(row.cells[1].dataset.sort));
  heading.querySelector("button").click();
  found.down = shown();
  heading.querySelector("button").click();
  found.up = shown();
  const colour = (of, what) => getComputedStyle(document.querySelector(of))[what].match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (ink, ground) => {
    const [low, high] = [light(colour(ink, "color")), light(colour(ground, "backgroundColor"))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  found.page = light(colour("body", "backgroundColor"));
  found.figures = light(colour("figure img", "backgroundColor"));
  found.contrasts = [["h2", "body"], ["figcaption", "body"], ["nav a", "body"], ["caption", "body"],
    [".headline", ".answer"], ["thead th", "thead th"], [".answer code", "code"]].map(pair => contrast(...pair));
  return found;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    study = tables.with_groups(tables.study(models=4, seeds=1))
    tables.analysed(study).write(folder / "analysis")
    draw(tables.write(folder / "tables", study), folder / "figures", analysis=folder / "analysis")
    data = Tables.read(folder / "tables", folder / "analysis")
    html = render(data, folder / "figures", "title: x\n", {"python": "3"}, "A study", tables.EQUAL_WITHIN)
    (folder / "report.html").write_text(html, "utf-8")
    return folder / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_figures_load_tables_sort_nothing_overflows_and_the_console_is_empty(page, width, dark, tmp_path):
    tab = Tab(tmp_path / "profile", width, dark)
    try:
        tab.open(page)
        found = tab.run(PROBE)
        assert tab.complaints() == []
    finally:
        tab.close()
    assert found["width"] == width
    assert found["wide"] <= width  # tables and large figures scroll inside their own boxes
    assert width < 1280 or found["cut"] == []  # no table scrolls on a desk
    assert len(found["images"]) == len(set(CAPTIONS) - set(OPTIONAL))
    for natural_width, natural_height, ratio in found["images"]:
        assert natural_width > 300
        assert ratio == pytest.approx(natural_width / natural_height, rel=0.02)
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["up"])
    assert (found["page"] < 0.02) == dark
    assert found["figures"] == 1.0  # drawn for a white ground
    assert min(found["contrasts"]) > 4.5
