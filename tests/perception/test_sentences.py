from __future__ import annotations

import pytest

from edge_runtime.perception.sentences import Sentences, spoken

TEXT = (
    'Hello, Dr. Smith. It is 3.5 degrees! **Bold** text… "Really?" he said. 1. First item\n2. Second `code` here\n'
    "```python\nx = 1.\n```\nSee [the page](http://x.y). J. R. R. Tolkien wrote e.g. this. So do I. 🎉 Done"
)
SENTENCES = [
    "Hello, Dr. Smith.",
    "It is 3.5 degrees!",
    "Bold text…",
    '"Really?"',
    "he said.",
    "First item",
    "Second code here",
    "See the page.",
    "J. R. R. Tolkien wrote e.g. this.",
    "So do I.",
    "Done",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_pieces_in_which_a_text_comes_do_not_matter(size: int):
    sentences = Sentences()
    found = [sentence for at in range(0, len(TEXT), size) for sentence in sentences.push(TEXT[at : at + size])]
    assert found + sentences.finish() == SENTENCES


def test_a_sentence_is_there_as_soon_as_the_next_one_begins():
    sentences = Sentences()
    assert sentences.push("It is open.") == []
    assert sentences.push(" ") == ["It is open."]
    assert sentences.finish() == []


def test_a_long_sentence_is_spoken_clause_by_clause():
    sentences = Sentences()
    clause = "it goes on and on without an end, "
    found = [sentence for _ in range(20) for sentence in sentences.push(clause)]
    assert len(found) >= 4
    assert all(sentence.endswith(",") and len(sentence) <= 160 for sentence in found)
    assert " ".join(found + sentences.finish()) == (clause * 20).strip()


def test_other_scripts_end_their_sentences_their_own_way():
    assert Sentences().push("こんにちは。元気です") == ["こんにちは。"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title", "Title"),
        ("* **one**, _two_", "one , two"),
        ("[[h@'loU]]", "h@'loU"),
        ("a\x07b\u200bc", "a b c"),
        ("--- ***", ""),
        ("🎉 🎉", ""),
    ],
)
def test_marks_that_nobody_reads_aloud(text: str, expected: str):
    assert spoken(text) == expected
