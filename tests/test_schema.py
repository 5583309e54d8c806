"""Tables keep to their schema on the way in and on the way out, and the documentation is that schema."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import Vectors

import kt
from kt.errors import KtError
from kt.tables import columns, schema
from kt.tasks.classification import Classification

SAMPLES = {
    columns.TEXT: st.text(max_size=8),
    columns.COUNT: st.integers(-(2**63), 2**63 - 1),
    columns.REAL: st.floats(allow_nan=False),
    columns.FLAG: st.booleans(),
    columns.CLASSES: st.lists(st.integers(0, 2**31 - 1), max_size=4),
    columns.TAGS: st.lists(st.text(max_size=5), max_size=3),
    columns.REALS: st.lists(st.floats(allow_nan=False) | st.none(), max_size=4),
}


def rows_of(table: str) -> st.SearchStrategy[list[dict[str, object]]]:
    columns = {c.name: (SAMPLES[c.dtype] | st.none() if c.nullable else SAMPLES[c.dtype]) for c in schema.TABLES[table]}
    return st.lists(st.fixed_dictionaries(columns), max_size=4)


def pair(**changes: object) -> dict[str, object]:
    return {"teacher": "a", "student": "b", "reason": "all", "chunk": 0, **changes}


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_table_survives_writing_and_reading(table):
    @given(rows_of(table))
    def check(rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t.parquet"
            schema.write(path, table, schema.build(table, rows), {"config_hash": "abc"})
            data = schema.read(path, table)
            assert data.to_pylist() == rows
            assert data.schema == schema.arrow_schema(table)

    check()


def test_files_carry_the_versions_and_what_the_writer_adds(tmp_path):
    schema.write(tmp_path / "p.parquet", "pairs", schema.build("pairs", [pair()]), {"config_hash": "abc"})
    facts = pq.read_schema(tmp_path / "p.parquet").metadata
    expected = {
        "table": "pairs",
        "schema_version": schema.VERSION,
        "code_version": kt.__version__,
        "config_hash": "abc",
    }
    assert {key.decode(): value.decode() for key, value in facts.items()} == expected


def test_columns_and_rows_give_the_same_table():
    columns = {name: [value, value] for name, value in pair().items()}
    assert schema.build("pairs", columns) == schema.build("pairs", [pair(), pair()])
    arrays = columns | {"chunk": np.array([0, 0])}
    assert schema.build("pairs", arrays) == schema.build("pairs", columns)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair(techer="x")], "table pairs: unknown column 'techer'; did you mean 'teacher'"),
        ({**{k: [v] for k, v in pair().items()}, "extra": [1]}, "unknown column 'extra'"),
        ({k: [v] for k, v in pair().items() if k != "chunk"}, "column 'chunk' is missing"),
        ([{k: v for k, v in pair().items() if k != "chunk"}], "column 'chunk' has no value in some rows"),
        ([pair(), pair(teacher=None)], "column 'teacher' has no value in some rows"),
        ([pair(chunk="0")], "table pairs: .*'0'"),
        ([pair(chunk=1.5)], "column 'chunk' holds fractions, but needs whole numbers"),
        ({**{k: [v] for k, v in pair().items()}, "chunk": np.array([1.5])}, "column 'chunk' holds fractions"),
        ([pair(chunk=2**63)], "table pairs: .*too large"),
        ([pair(chunk=float("nan"))], "table pairs: .*nan"),
        ([pair(teacher=3)], "table pairs: .*'int' object"),
        ({**{k: [v] for k, v in pair().items()}, "chunk": [0, 1]}, "table pairs: .*length"),
    ],
)
def test_build_refuses_unknown_missing_wrong_and_null_values(rows, message):
    with pytest.raises(KtError, match=message):
        schema.build("pairs", rows)


def test_read_drops_columns_that_it_does_not_know(tmp_path):
    pd.DataFrame([pair(mine="x"), pair(mine="y")]).to_parquet(tmp_path / "theirs.parquet")
    frame = schema.read_frame(tmp_path / "theirs.parquet", "pairs")
    assert frame.to_dict("records") == [pair(), pair()]


@pytest.mark.parametrize("extra", [False, True])
def test_columns_that_tables_of_earlier_versions_lack_are_null_unless_they_are_asked_for(tmp_path, extra):
    path, row = tmp_path / "zoo.parquet", dict.fromkeys(schema.arrow_schema("zoo").names)
    row |= {"name": "a", "arch": "b", "params": 1, "macs": 1, "input_size": 1, "feature_width": 1, "recipe": []}
    row |= {"fingerprint": "c", "acc": 1.0, "acc_se": 0.5, "acc_validation": 1.0, "pixel_accuracy": 2.0}
    schema.write(path, "zoo", schema.build("zoo", [row]))
    pq.write_table(pq.read_table(path).drop_columns(["pixel_accuracy", "iou_by_class"]), path)
    assert schema.read(path, "zoo", extra=extra).to_pylist() == [row | {"pixel_accuracy": None}]
    with pytest.raises(KtError, match="column 'pixel_accuracy' is missing"):
        schema.read(path, "zoo", ["name", "pixel_accuracy"])
    pq.write_table(pq.read_table(path).drop_columns(["ece"]), path)
    with pytest.raises(KtError, match="column 'ece' is missing"):
        schema.read(path, "zoo")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (pa.table({"teacher": ["a"], "student": ["b"], "chunk": [0]}), "column 'reason' is missing; docs/tables.md"),
        (pa.table({k: [v] for k, v in pair(chunk="x").items()}), "docs/tables.md describes the table 'pairs'"),
        (pa.table({k: [v] for k, v in pair(chunk=[1]).items()}), "docs/tables.md describes the table 'pairs'"),
        (pa.table({k: [v] for k, v in pair(chunk=0.5).items()}), "docs/tables.md describes the table 'pairs'"),
        (pa.table({k: [v] for k, v in pair(chunk=None).items()}), "chunk"),
    ],
)
def test_read_refuses_missing_wrong_and_null_columns_and_names_the_file(tmp_path, theirs, message):
    pq.write_table(theirs, tmp_path / "theirs.parquet")
    with pytest.raises(KtError, match=rf"theirs\.parquet: .*{message}|^table pairs: .*{message}"):
        schema.read(tmp_path / "theirs.parquet", "pairs")


def test_read_names_missing_and_damaged_files(tmp_path):
    with pytest.raises(KtError, match=r"none\.parquet: no such file"):
        schema.read(tmp_path / "none.parquet", "pairs")
    schema.write(tmp_path / "p.parquet", "pairs", schema.build("pairs", [pair()]))
    whole = (tmp_path / "p.parquet").read_bytes()
    for damaged in (b"", b"not parquet at all", whole[:-20]):
        (tmp_path / "p.parquet").write_bytes(damaged)
        with pytest.raises(KtError, match=r"p\.parquet: not a readable Parquet file"):
            schema.read(tmp_path / "p.parquet", "pairs")


def test_csv_writes_lists_as_values_with_spaces(tmp_path):
    table = pa.table({"name": ["a, b", "c"], "classes": pa.array([[3, 1], []], columns.CLASSES), "x": [0.5, None]})
    schema.write_csv(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "classes", "x"], ["a, b", "3 1", "0.5"], ["c", "", ""]]


def test_column_names_are_distinct_and_every_column_says_what_it_means():
    for table, listed in schema.TABLES.items():
        names = [c.name for c in listed]
        assert len(set(names)) == len(names), table
        assert all(c.unit and c.meaning for c in listed), table


def test_markdown_has_a_row_for_every_column():
    text = schema.markdown()
    for table, listed in schema.TABLES.items():
        section = text.split(f"## {table}\n")[1].split("\n## ")[0]
        found = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert found == [c.name for c in listed]
        assert section.count("may be null") == sum(c.nullable for c in listed)


def test_the_documentation_of_the_tables_is_generated_from_the_schema(root):
    assert schema.markdown() in (root / "docs" / "tables.md").read_text("utf-8")


def fit_pairs() -> pa.Table:
    row = {column.name: None for column in schema.TABLES["complementarity"] if column.nullable}
    row |= dict.fromkeys((c.name for c in schema.TABLES["complementarity"] if not c.nullable), 0)
    return schema.build("complementarity", [row | {"teacher": "a", "student": "b", "split": "test"}])


def test_a_file_names_columns_by_the_metric_of_its_task_and_memory_does_not(tmp_path):
    task, data = {schema.TASK: Vectors().words.to_json()}, fit_pairs()
    schema.write(tmp_path / "c.parquet", "complementarity", data, task)
    names = pq.read_schema(tmp_path / "c.parquet").names
    assert {"fit_teacher", "fit_student", "fit_difference"} < set(names)
    assert not [name for name in names if "acc" in name.split("_")]
    assert schema.read(tmp_path / "c.parquet", "complementarity") == data
    assert schema.read(tmp_path / "c.parquet", "complementarity", ["teacher", "acc_difference"]).num_columns == 2
    assert schema.words(tmp_path / "c.parquet") == Vectors().words
    schema.write_pieces(tmp_path / "p.parquet", "complementarity", [data, data], task)
    assert pq.read_schema(tmp_path / "p.parquet").names == names
    assert schema.read(tmp_path / "p.parquet", "complementarity") == pa.concat_tables([data, data])
    schema.write_csv(tmp_path / "c.csv", data, "complementarity", task)
    assert (tmp_path / "c.csv").read_text().splitlines()[0].split(",") == names
    lost = pq.read_table(tmp_path / "c.parquet").drop_columns(["fit_teacher"])
    pq.write_table(lost, tmp_path / "lost.parquet")
    with pytest.raises(KtError, match="column 'fit_teacher' is missing"):
        schema.read(tmp_path / "lost.parquet", "complementarity")


def test_values_that_are_names_of_columns_follow_the_metric(tmp_path):
    reasons = ["top 3 by acc_teacher: rank 1", "all", "by accuracy"]
    data = schema.build("pairs", [pair(reason=reason) for reason in reasons])
    schema.write(tmp_path / "p.parquet", "pairs", data, {schema.TASK: Vectors().words.to_json()})
    assert pq.read_table(tmp_path / "p.parquet")["reason"].to_pylist() == ["top 3 by fit_teacher: rank 1", *reasons[1:]]
    assert schema.read(tmp_path / "p.parquet", "pairs") == data


def test_the_tables_of_classification_have_the_columns_of_the_documentation(tmp_path):
    task = {schema.TASK: Classification().words.to_json()}
    schema.write(tmp_path / "c.parquet", "complementarity", fit_pairs(), task)
    assert pq.read_schema(tmp_path / "c.parquet").names == schema.arrow_schema("complementarity").names
    pq.write_table(pa.table({"teacher": ["a"]}), tmp_path / "plain.parquet")
    assert schema.words(tmp_path / "plain.parquet") == schema.words(tmp_path / "c.parquet") == Classification().words


def test_a_metric_whose_key_is_taken_is_refused():
    with pytest.raises(KtError, match="table by_model: the metric's key 'delta' makes two columns 'delta'; choose"):
        schema.file_names("by_model", "delta")
