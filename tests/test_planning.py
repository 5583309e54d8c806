"""Plans of the workflow only read: jobs whose tables hold rows of damaged records are planned, and change the records.

A plan looks at files' times alone, so that most files of the study are empty; the data set, the ledger and the tables
of the jobs are real.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pipeline import Checkout

from kt import status
from kt.cli import main
from kt.layout import Layout
from kt.study import recipes
from kt.study import units as requested
from kt.study.load import load
from kt.study.recipes import RECIPE
from kt.study.study import Study
from kt.transfer.ledger import Ledger, key
from kt.transfer.unit import Unit

pytestmark = pytest.mark.slow

MEMBERS = ("byob", "mixer", "third")
TABLES = {
    "transfer": "transfer/byob/0.parquet",
    "search": "transfer/byob/search.parquet",
    "groups": "transfer/byob/groups.parquet",
    "amalgamate": "experiments/amalgamate/both/rows.parquet",
}
TARGETS = [f"results/{table}" for table in TABLES.values()]


def rule_of(unit: Unit) -> str:
    """The workflow's rule whose job does a unit."""
    if "." in unit.student:
        return unit.student.split(".")[0]
    return "search" if unit.split == "validation" else "groups" if len(unit.teachers) > 1 else "transfer"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[str, Path]]:
    """A study that lacks nothing, and a record of a unit in each of ``TABLES``."""
    checkout = Checkout(tmp_path_factory.mktemp("planned"))
    study, recipe = checkout.study, {"arch": "tiny_mixer", "train": {"epochs": 1}}
    study["zoo"]["models"] = {name: copy.deepcopy(recipe) for name in MEMBERS}
    study["pairs"] = {"select": "explicit", "pairs": [{"teacher": "mixer", "student": "byob"}]}
    search = {"methods": {"xekl": {"alpha": [0.5, 1.0]}}, "pairs": 1}
    study["transfer"] |= {"methods": {"kl": {}, "xekl": {}}, "search": search}
    sets = [{"teachers": ["mixer", "third"], "student": "byob"}]
    study["groups"] = {"choose": {"select": "explicit", "sets": sets}, "methods": {"soup": {}}}
    experiment = {"teachers": ["byob", "mixer"], "student": {"arch": "tiny_mixer"}, "methods": {"kd": {}}}
    training = {"epochs": 1, "batch_size": 20}
    study["amalgamate"] = {"both": {**experiment, "overlap": "mean", "training": training}}
    checkout.command()
    assert main(["data", "--config", str(checkout.folder / "config.yaml")]) == 0
    results, study = checkout.folder / "results", load(checkout.folder / "config.yaml")
    files = ["data/images.npy", "data/labels.npy", "data/splits.parquet", "data/meta.json"]
    real = {*files, *TABLES.values()}
    files += [f"zoo/{name}.{kind}" for name in MEMBERS for kind in ("safetensors", "json")]
    files += [f"predictions/{name}.safetensors" for name in MEMBERS]
    files += ["tables/zoo.parquet", TABLES["search"], "tables/search.csv", "tables/search.parquet"]
    files += [TABLES["transfer"], TABLES["groups"], TABLES["amalgamate"], "experiments/amalgamate/both/details.parquet"]
    for name in files:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet") and name not in real:
            write_table(results / name, study, [])
        elif name.endswith(".json") and name not in real:
            facts = {"fingerprint": Path(name).stem, RECIPE: recipes.of_member(study, Path(name).stem)}
            (results / name).write_text(json.dumps(facts))
        elif name not in real:
            (results / name).touch()
    records = write_records(study, Layout(results))
    for age, name in enumerate(files):
        os.utime(results / name, (1e9 + age, 1e9 + age))
    return checkout, records


def write_table(path: Path, study: Study, keys: list[str]) -> None:
    """A table that says which configuration it was made from."""
    table = pa.table({"key": pa.array(keys, pa.string())})
    pq.write_table(table.replace_schema_metadata({"config_hash": study.hash}), path)


def write_records(study: Study, layout: Layout) -> dict[str, Path]:
    """Records of one unit of every rule, and the tables that hold their keys."""
    ledger, records = Ledger(layout.ledger), {}
    prints = {name: name for name in MEMBERS}
    prints["amalgamate.both"] = requested.student_print(study, study.amalgamate["both"])
    jobs = requested.jobs(study, layout, requested.teachers_of(study, layout))
    for unit in (unit for job in jobs if job.known for unit in job.units):
        if (rule := rule_of(unit)) not in records:
            ledger.add(unit.describe(prints), {"status": "ok"})
            records[rule] = ledger.path(unit.key(prints))
            write_table(layout.root / TABLES[rule], study, [unit.key(prints)])
    assert set(records) == set(TABLES)
    return records


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file's content, and of the results also the time of change; Snakemake's own records are left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    return {path: ("results" in path.parts and path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def planned(checkout: Checkout, *targets: str) -> dict[str, int]:
    """Number of jobs of every rule in a dry run, by the times of files alone."""
    printed = checkout.succeed("-n", "--rerun-triggers", "mtime", "--", *targets)
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE) if rule != "total"}


@contextmanager
def damaged(*records: Path) -> Iterator[None]:
    """Records lack their ends for a while."""
    whole = [record.read_bytes() for record in records]
    for record, content in zip(records, whole, strict=True):
        record.write_bytes(content[:-5])
    yield
    for record, content in zip(records, whole, strict=True):
        record.write_bytes(content)


def test_a_whole_study_has_nothing_planned(made: tuple[Checkout, dict[str, Path]]) -> None:
    assert planned(made[0], *TARGETS) == {}


@pytest.mark.parametrize(
    ("rules", "jobs"),
    [
        (["transfer"], {"transfer": 1}),
        (["search"], {"search": 1, "choose": 1, "transfer": 1}),  # transfers wait for what is chosen
        (["groups", "amalgamate"], {"groups": 1, "amalgamate": 1}),
    ],
)
def test_jobs_whose_rows_rest_on_damaged_records_are_planned_alone(
    made: tuple[Checkout, dict[str, Path]], rules: list[str], jobs: dict[str, int]
) -> None:
    checkout, records = made
    with damaged(*(records[rule] for rule in rules)):
        assert planned(checkout, *TARGETS) == jobs


def test_a_file_of_an_unknown_model_is_refused_with_the_nearest_name(made: tuple[Checkout, dict[str, Path]]) -> None:
    done = made[0].run("-n", "results/transfer/bybo/0.parquet")
    assert done.returncode
    assert "unknown model 'bybo'" in done.stdout + done.stderr
    assert "did you mean 'byob'" in done.stdout + done.stderr


def test_a_target_that_does_not_need_a_damaged_record_leaves_it(made: tuple[Checkout, dict[str, Path]]) -> None:
    checkout, records = made
    with damaged(*records.values()):
        assert planned(checkout, "results/tables/zoo.parquet") == {}


def test_a_damaged_record_that_no_unit_requests_is_passed_over(made: tuple[Checkout, dict[str, Path]]) -> None:
    checkout, records = made
    study, layout = load(checkout.folder / "config.yaml"), Layout(checkout.folder / "results")
    unit = {"unit": "of an earlier setting"}
    Ledger(layout.ledger).add(unit, {"status": "ok"})
    old = Ledger(layout.ledger).path(key(unit))
    with damaged(old, records["search"], records["amalgamate"]):
        assert set(status.survey(study, layout).damaged) == {records["search"].stem, records["amalgamate"].stem}
    old.unlink()


def test_no_use_of_the_snakefile_but_a_run_changes_a_file(made: tuple[Checkout, dict[str, Path]]) -> None:
    checkout, records = made
    with damaged(*records.values()):
        checkout.command()
        before = contents(checkout.folder)
        for use in ("--summary", "--lint", "--list", "-n", "--dag"):
            checkout.succeed(use)
            assert contents(checkout.folder) == before, use


def test_a_table_that_cannot_be_read_may_hold_any_record(made: tuple[Checkout, dict[str, Path]]) -> None:
    checkout, records = made
    layout = Layout(checkout.folder / "results")
    assert status.tables_with(layout, []) == []
    (layout.root / "transfer/byob/1.parquet").write_text("nothing of the kind")
    found = status.tables_with(layout, [records["groups"].stem])
    (layout.root / "transfer/byob/1.parquet").unlink()
    assert found == [layout.root / "transfer/byob/1.parquet", layout.root / TABLES["groups"]]


def test_settings_of_a_rule_that_is_not_there_are_told_of(made: tuple[Checkout, dict[str, Path]]) -> None:
    target = "results/tables/zoo.parquet"
    former = made[0].run("-n", "--set-resources", "predictions:gpus=1", "--", target)
    assert former.returncode
    assert "profile: 'predictions' is now part of the rule 'member'" in former.stderr
    both = ("member:gpus=1", "predictions:gpus=1")  # a profile for the versions before too
    assert "unknown rule 'memer'" in made[0].succeed("-n", "--set-resources", *both, "memer:gpus=1", "--", target)
