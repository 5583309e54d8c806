"""The parts that every message to the user is made of."""

from __future__ import annotations

from kt.errors import MAX_LISTED, listed, nearest, unknown


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
