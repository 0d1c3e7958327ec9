from __future__ import annotations

import random

import pytest

from edge_runtime.evaluation.metrics import edit_distance, same_answer, same_calls, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Turn ON the kitchen-light, please.", "turn on the kitchen light please"),
        ("Set an alarm for 10:30 am.", "set an alarm for 10:30 am"),
        ("1,250 people. Version 1.7.", "1250 people version 1.7"),
        ("Don\u2019t  stop!", "don't stop"),
        ("Caf\u00e9 \u2014 \u00dcber", "caf\u00e9 \u00fcber"),
        ("What is 13 - 2? Wait - 3.", "what is 13 - 2 wait 3"),
        ("...", ""),
    ],
)
def test_words_are_what_was_said_and_not_how_it_was_punctuated(text, expected):
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("found", "expected", "distance"),
    [("", "", 0), ("", "a b", 2), ("a b", "", 2), ("a b c", "a x c", 1), ("b c", "a b c", 1), ("a b a", "b a b", 2)],
)
def test_edit_distance_of_known_pairs(found, expected, distance):
    assert edit_distance(found.split(), expected.split()) == distance


def test_edit_distance_never_exceeds_the_edits_that_were_made():
    r = random.Random(3)
    for _ in range(200):
        expected = [r.choice("abcd") for _ in range(r.randint(0, 8))]
        found = list(expected)
        edits = r.randint(0, 3)
        for _ in range(edits):
            at = r.randint(0, len(found))
            found[at : at + r.randint(0, 1)] = [r.choice("abcd")] if r.random() < 0.5 else []
        assert edit_distance(found, expected) <= edits
        assert edit_distance(found, expected) == edit_distance(expected, found)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("Red.", "red", True),
        (" EXIT ", "Exit", True),
        ("10:30", "1030", False),
        ("3 + 4 is 7.", "3 - 4 is 7.", False),
        ("two", "2", False),
        ("I do not know that", "I do not know that.", True),
        ("", "red", False),
    ],
)
def test_same_answer(found, expected, same):
    assert same_answer(found, expected) is same


def _call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ([_call("dim", percent=20, room="hall")], True),
        ([_call("dim", room="hall", percent=20)], True),
        ([_call("dim", room="hall", percent=20.0)], True),
        ([_call("dim", room="hall", percent="20")], False),
        ([_call("dim", room="hall", percent=True)], False),
        ([_call("dim", room="hall")], False),
        ([_call("dim", room="hall", percent=20, fast=False)], False),
        ([_call("set", room="hall", percent=20)], False),
        ([_call("dim", percent=20, room="hall")] * 2, False),
        ([], False),
    ],
)
def test_same_calls_wants_names_arguments_and_types(found, same):
    assert same_calls(found, [_call("dim", percent=20, room="hall")]) is same


def test_same_calls_looks_into_nested_arguments_and_keeps_order():
    nested = [_call("plan", days=["Monday", {"hour": 1}])]
    assert same_calls(nested, [_call("plan", days=["Monday", {"hour": 1}])])
    assert not same_calls(nested, [_call("plan", days=["Monday", {"hour": True}])])
    assert not same_calls([_call("a"), _call("b")], [_call("b"), _call("a")])
    assert same_calls([], [])
