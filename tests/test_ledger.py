"""The ledger gives back what was put in, or nothing: never something else."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kt import store
from kt.transfer.ledger import Ledger, Record, key, pack, unpack

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
RECORDS = st.dictionaries(st.text(max_size=6), SCALARS | st.lists(SCALARS, max_size=3), max_size=4)
UNIT = {"data": "d", "method": {"name": "kl", "version": 1}, "seed": 0}
OUTCOME = {"status": "ok", "last": "abc", "loss": [1.5, 1e-07], "device": "Gerät", "teacher_share": None}


def records(ledger: Ledger) -> list[tuple[str, Record | None]]:
    """Every key in the ledger with its outcome, or with None where the record is damaged."""
    found: list[tuple[str, Record | None]] = []
    for path in sorted(ledger.folder.glob("[0-9a-f][0-9a-f]/*.json")):
        try:
            found.append((path.stem, ledger.read(path.stem)[1]))
        except ValueError:
            found.append((path.stem, None))
    return found


@given(hnp.arrays(np.int64, st.integers(0, 300), elements=st.integers(0, 2**16 - 1)))
def test_unpack_gives_back_the_classes_that_were_packed(classes):
    text = pack(classes)
    assert text.isascii()
    assert unpack(text).dtype == np.int64
    assert np.array_equal(unpack(text), classes)


@pytest.mark.parametrize(
    "kept",
    [
        np.array([0, 70_000]),
        np.array([-1, 3]),
        np.arange(6).reshape(2, 3),
        np.array([0.1, -2.5]),
        np.array([[0.1], [np.pi]], np.float32),
        np.zeros((0, 3)),
    ],
)
def test_whatever_a_task_keeps_comes_back_to_the_bit(kept):
    found = unpack(pack(kept))
    assert found.shape == kept.shape
    assert np.array_equal(found, kept)


def test_packing_is_the_same_everywhere():
    assert pack(np.array([1, 2, 300])) == pack(np.array([1, 2, 300], ">i4"))


@given(RECORDS, RECORDS)
def test_get_gives_back_what_add_wrote(unit, outcome):
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger")
        assert ledger.get(key(unit)) is None
        ledger.add(unit, outcome)
        assert ledger.get(key(unit)) == outcome
        assert records(ledger) == [(key(unit), outcome)]
        ledger.remove(key(unit))
        assert ledger.get(key(unit)) is None
        assert records(ledger) == []


@given(RECORDS, RECORDS)
def test_keys_differ_exactly_where_units_do(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (key(first) == key(second)) == same
    assert key(dict(reversed(first.items()))) == key(first)


@given(st.data())
def test_any_flipped_byte_is_detected_set_aside_and_reported(data):
    check_damage(data, lambda whole, at, bits: whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])


@given(st.data())
def test_any_truncation_is_detected_set_aside_and_reported(data):
    check_damage(data, lambda whole, at, bits: whole[:at])


@given(st.data())
def test_any_run_of_zeros_is_detected_set_aside_and_reported(data):
    check_damage(data, lambda whole, at, bits: whole[:at] + bytes(len(whole) - at))


def check_damage(data: st.DataObject, damage) -> None:
    """A damaged record is none; one that means the same, for all that a byte changed, is itself."""
    reported = []
    handler = logging.Handler()
    handler.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("kt.transfer.ledger")
    logger.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder))
            ledger.add(UNIT, OUTCOME)
            path = ledger.path(key(UNIT))
            whole = path.read_bytes()
            at = data.draw(st.integers(0, len(whole) - 1))
            damaged = damage(whole, at, data.draw(st.integers(1, 255)))
            path.write_bytes(damaged)
            listed = records(ledger)
            found = ledger.get(key(UNIT))
            if found is None:
                assert listed == [(key(UNIT), None)]
                assert not path.exists()
                assert (Path(folder) / "damaged" / path.name).read_bytes() == damaged
                assert len(reported) == 1
                assert key(UNIT)[:12] in reported[0]
                assert records(ledger) == []
                ledger.add(UNIT, OUTCOME)
                assert ledger.get(key(UNIT)) == OUTCOME
            else:
                assert json.loads(damaged) == json.loads(whole)  # white space, or another spelling of a number
                assert found == OUTCOME
                assert listed == [(key(UNIT), OUTCOME)]
                assert not reported
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"null", b"{}", b'{"unit": 1}', b"\xff", b'{"unit": {}, "outcome": NaN, "hash": ""}'],
)
def test_what_is_no_record_counts_as_damaged(tmp_path, content):
    ledger = Ledger(tmp_path)
    path = ledger.path(key(UNIT))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert records(ledger) == [(key(UNIT), None)]
    assert ledger.get(key(UNIT)) is None
    assert (tmp_path / "damaged" / path.name).read_bytes() == content


def test_a_whole_record_under_another_key_counts_as_damaged(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(UNIT, OUTCOME)
    other = key({**UNIT, "seed": 1})
    ledger.path(other).parent.mkdir(parents=True, exist_ok=True)
    ledger.path(other).write_bytes(ledger.path(key(UNIT)).read_bytes())
    assert ledger.get(other) is None
    assert ledger.get(key(UNIT)) == OUTCOME


def test_outcomes_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Ledger(tmp_path).add(UNIT, {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_are_not_records(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(UNIT, OUTCOME)
    path = ledger.path(key(UNIT))
    path.with_name(f".{path.name}.tmp999").write_text("half a rec")
    assert records(ledger) == [(key(UNIT), OUTCOME)]


def test_a_second_record_of_the_same_unit_replaces_the_first(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(UNIT, {"status": "failed"})
    ledger.add(UNIT, OUTCOME)
    assert records(ledger) == [(key(UNIT), OUTCOME)]


def test_an_empty_or_missing_ledger_has_no_records_and_is_not_made(tmp_path):
    ledger = Ledger(tmp_path / "none")
    assert records(ledger) == []
    assert ledger.get(key(UNIT)) is None
    ledger.remove(key(UNIT))
    assert not (tmp_path / "none").exists()


def test_records_name_the_unit_and_hash_unit_and_outcome(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(UNIT, OUTCOME)
    path = tmp_path / key(UNIT)[:2] / f"{key(UNIT)}.json"
    record = json.loads(path.read_text("utf-8"))
    assert record == {"unit": UNIT, "outcome": OUTCOME, "hash": store.digest([UNIT, OUTCOME])}
