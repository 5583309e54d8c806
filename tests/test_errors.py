"""The parts that every message to the user is made of."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt.analysis.inputs import numeric
from kt.errors import LONGEST, MAX_LISTED, KtError, listed, nearest, quoted, short, unknown


def test_nearest_offers_close_names_and_nothing_far():
    assert nearest("resnet10", ["resnet10t", "vit"]) == "; did you mean 'resnet10t'?"
    assert nearest("kl_d", ["kl_dp", "kl_dq", "zzz"]) == "; did you mean 'kl_dq' or 'kl_dp'?"
    assert nearest("qqq", ["resnet10t", "vit"]) == ""


def test_listed_counts_the_names_it_leaves_out():
    assert listed(["a", "b"]) == "a, b"
    assert listed(f"n{i}" for i in range(MAX_LISTED)).count(",") == MAX_LISTED - 1
    assert listed(f"n{i}" for i in range(MAX_LISTED + 3)).endswith("n11, … (3 more)")


def test_unknown_names_the_value_what_is_allowed_and_the_nearest():
    assert unknown("rule", "al", iter(["all", "top"])) == "unknown rule 'al'; allowed: all, top; did you mean 'all'?"


def test_a_long_value_is_its_beginning_its_end_and_its_length():
    assert short("a" * LONGEST) == "a" * LONGEST
    assert short(f"begin{'-' * 5000}end").startswith("begin-")
    assert short(f"begin{'-' * 5000}end").endswith("-end")
    assert "(5,008 characters)" in short(f"begin{'-' * 5000}end")
    assert short("a\nb\u2028") == "a\\nb\\u2028"


@given(st.text(min_size=1) | st.text("x \n\u2028'", min_size=201, max_size=3000))
def test_what_is_quoted_is_printable_and_never_long(text):
    for made in (short(text), quoted(text)):
        assert len(made) <= LONGEST
        assert made.isprintable()


def test_what_libraries_quote_is_shortened_too():
    line = f"""it's {"9" * 5000} and "{"a b " * 500}", not 'models' of others' studies {"word " * 60}"""
    text = str(KtError(f"{line}\nsecond"))
    assert text.endswith(f"not 'models' of others' studies {'word ' * 60}\nsecond")
    assert "(5,000 characters)" in text
    assert "(2,002 characters)" in text
    assert len(str(KtError("a b " * 5000))) <= 2000


def test_a_number_of_a_table_that_is_none_is_quoted_short():
    with pytest.raises(KtError) as caught:
        numeric(pd.Series(["1", "12" * 3000 + "x"]), "zoo", "params")
    assert str(caught.value).startswith("table zoo: column 'params' must hold numbers, not '1212")
    assert str(caught.value).endswith("(row 1)")
    assert len(str(caught.value)) < 300
