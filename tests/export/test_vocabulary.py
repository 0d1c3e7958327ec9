from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from edge_runtime.builtin import checkpoint_path
from edge_runtime.export.vocabulary import copy_tokenizer, joined

if TYPE_CHECKING:
    from pathlib import Path


def file(merges: object) -> bytes:
    return json.dumps({"model": {"type": "BPE", "merges": merges}, "more": [["a", "b"]]}, indent=2).encode()


def test_merges_become_strings_and_nothing_else_changes() -> None:
    pairs = [["a", "b"], ['"', "\\"], ["\n", "ä"], ["]", ","], ["▁", "[["]]
    found = json.loads(joined(file(pairs)))
    assert found == json.loads(file([f"{a} {b}" for a, b in pairs]))


@pytest.mark.parametrize(
    "merges", [[], ["a b"], [["a", "b"], ["c ", "d"]], [["a", "b", "c"]], [["a", 1]], None], ids=str
)
def test_others_stay_as_they_are(merges: object) -> None:
    assert joined(file(merges)) == file(merges)
    assert joined(b'{"merges": [["a", "b\\u0020"]]}') == b'{"merges": [["a", "b\\u0020"]]}'
    assert joined(b'{"merges": [["a", "b"]') == b'{"merges": [["a", "b"]'
    assert joined(b"no json") == b"no json"


def test_the_built_in_models_is_the_same_tokenizer(tmp_path: Path) -> None:
    checkpoint = checkpoint_path()
    copy_tokenizer(checkpoint / "tokenizer.json", tmp_path / "tokenizer.json")
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, checkpoint))
    assert all(isinstance(merge, str) for merge in ours["model"]["merges"])
    ours["model"]["merges"] = [merge.split(" ") for merge in ours["model"]["merges"]]
    assert ours == theirs
    first, second = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path, checkpoint))
    assert first.to_str() == second.to_str()
