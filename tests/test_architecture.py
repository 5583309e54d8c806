"""Structure of the package: imports go down from room to room, and nowhere in a circle (docs/architecture.md)."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

KT = Path(__file__).resolve().parent.parent / "kt"

ROOMS = (
    "__main__",
    "cli",
    "stages",
    "report",
    "figures",
    "status",
    "analysis",
    "study",
    "control",
    "transfer",
    "complementarity",
    "zoo",
    "data",
    "tables",
    "tasks",
)
"""From top to bottom; a room may import from those below."""
FOUNDATION = (
    "predictions",
    "pairs",
    "costs",
    "checkpoint",
    "compiler",
    "compression",
    "store",
    "layout",
    "spec",
    "progress",
    "errors",
)
"""Files at the top of the package, and the rules of pairs, below all rooms."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Every module and those that it imports, at any place: in functions and for types too."""
    graph = grimp.build_graph("kt", include_external_packages=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def room(module: str) -> str:
    return (*module.split("."), "")[1]


def between_rooms(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of one room's module by another's; ``kt`` itself holds the version alone."""
    pairs = [(importer, imported) for importer, found in imports.items() for imported in found]
    return [(a, b) for a, b in sorted(pairs) if b.startswith("kt.") and room(a) != room(b)]


def test_every_file_and_folder_of_the_package_has_its_floor(imports: dict[str, set[str]]) -> None:
    assert {room(module) for module in imports if module.startswith("kt.")} == {*ROOMS, *FOUNDATION}


def test_the_picture_shows_every_room() -> None:
    picture = (KT.parent / "docs/images/architecture.svg").read_text("utf-8")
    assert [name for name in ROOMS if name != "__main__" and f">kt/{name}<" not in picture] == []


def test_no_import_goes_up(imports: dict[str, set[str]]) -> None:
    floors = {name: floor for floor, name in enumerate(ROOMS)} | dict.fromkeys(FOUNDATION, len(ROOMS))
    assert [(a, b) for a, b in between_rooms(imports) if floors[room(a)] > floors[room(b)]] == []


def test_no_import_goes_in_a_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_analysis_figures_and_report_are_made_from_tables_alone(imports: dict[str, set[str]]) -> None:
    shown = {"report", "figures", "analysis"}
    allowed = {*shown, "tables", "tasks", "store", "errors", "progress"}
    own = [(a, b) for a, b in between_rooms(imports) if room(a) in shown]
    methods = ("kt.transfer.method", "kt.control.methods", "kt.spec")
    documented = [(a, b) for a, b in own if room(a) == "report" and b.startswith(methods)]
    assert [(a, b) for a, b in own if room(b) not in allowed and (a, b) not in documented] == []


def test_the_package_knows_nothing_of_snakemake(imports: dict[str, set[str]]) -> None:
    assert [module for module, found in imports.items() if "snakemake" in found] == []


def test_the_package_stays_small_enough_to_find_ones_way() -> None:
    # 210, not 172: a further task has files of its own, and long files were divided to be read in one sitting
    assert len(list(KT.rglob("*.py"))) <= 210
    assert len(list(KT.glob("*.py"))) <= 12


def test_code_is_laid_out_by_the_formatter_alone() -> None:
    assert [path.name for path in KT.rglob("*.py") if "# fmt: skip" in path.read_text("utf-8")] == []
