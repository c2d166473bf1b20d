"""Dotted paths of nested values."""

from mgpt.nested import leaves

TREE = {"a": {"b": 1, "c": {"d": None}}, "e": [{"f": 2}, "g", []], "h": {}}


def test_a_list_is_a_value_and_an_empty_mapping_is_none() -> None:
    assert dict(leaves(TREE)) == {"a.b": 1, "a.c.d": None, "e": TREE["e"]}


def test_the_items_of_lists_stand_under_their_index() -> None:
    assert dict(leaves(TREE, into_lists=True)) == {"a.b": 1, "a.c.d": None, "e.0.f": 2, "e.1": "g"}
