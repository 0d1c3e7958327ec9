from __future__ import annotations

import json

import pytest

from edge_runtime import builtin
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.exchanges import MODALITIES, read_exchanges

CALL = {"name": "set_light", "arguments": {"room": "office", "state": "on"}}
TOOL = {"type": "function", "function": {"name": "set_light"}}
USER = [{"role": "user", "content": "Hello"}]


def _write(folder, kind, *cases):
    path = folder / kind
    path.mkdir(parents=True, exist_ok=True)
    for name in ("a.wav", "a.png"):
        (path / name).write_bytes(name.encode())
    (path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return folder


@pytest.fixture
def sets(tmp_path):
    _write(tmp_path, "text", {"messages": USER, "answer": "Hi.", "group": "faq"})
    _write(tmp_path, "wer", {"audio": "a.wav", "text": "Good morning.", "group": "seen"})
    _write(tmp_path, "vision", {"image": "a.png", "question": "Which color?", "answer": "Red.", "group": "color"})
    typed = {"messages": USER, "tools": [TOOL], "calls": [CALL], "group": "typed"}
    spoken = {"audio": "a.wav", "tools": [TOOL], "calls": [CALL], "group": "spoken"}
    return _write(tmp_path, "tools", typed, typed | {"calls": [], "group": "none"}, spoken)


def test_every_set_gives_a_question_and_the_answer_to_force(sets):
    found = {(e.modality, bool(e.tools)): e for e in read_exchanges(sets)}
    assert len(found) == 5  # the case that wants no call has no answer
    assert found["text", False].messages == USER
    assert found["text", False].answer == {"role": "assistant", "content": "Hi."}
    assert found["text", True].answer["tool_calls"] == [{"type": "function", "function": CALL}]
    assert found["image", False].messages[0]["content"] == [
        {"type": "image", "image": sets / "vision" / "a.png"},
        {"type": "text", "text": "Which color?"},
    ]
    assert found["audio", False].messages[0]["content"][0] == {"type": "audio", "audio": sets / "wer" / "a.wav"}
    assert found["audio", False].messages[0]["content"][1]["type"] == "text"
    assert found["audio", False].answer["content"] == "Good morning."
    assert len(found["audio", True].messages[0]["content"]) == 1
    assert found["audio", True].where == f"{sets / 'tools' / 'cases.jsonl'}:3"


def test_a_digest_tells_words_tools_answers_and_media_apart(sets):
    found = read_exchanges(sets)
    before = [exchange.digest() for exchange in found]
    assert len(set(before)) == len(before)
    assert [exchange.digest() for exchange in read_exchanges(sets)] == before
    (sets / "vision" / "a.png").write_bytes(b"another picture")
    after = [exchange.digest() for exchange in read_exchanges(sets)]
    assert [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [
        i for i, exchange in enumerate(found) if exchange.modality == "image"
    ]


def test_a_digest_does_not_depend_on_where_the_media_lie(sets, tmp_path_factory):
    here = [exchange.digest() for exchange in read_exchanges(sets)]
    moved = sets.rename(tmp_path_factory.mktemp("elsewhere") / "sets")
    assert [exchange.digest() for exchange in read_exchanges(moved)] == here


def test_folders_that_hold_no_sets(tmp_path):
    with pytest.raises(EdgeRuntimeError, match="no such folder"):
        read_exchanges(tmp_path / "nowhere")
    with pytest.raises(EdgeRuntimeError, match="none of the sets wer, vision, tools, text"):
        read_exchanges(tmp_path)


def test_the_program_brings_prompts_of_every_kind():
    found = read_exchanges(builtin.heldout_path())
    assert {exchange.modality for exchange in found} == set(MODALITIES)
    assert sum(bool(exchange.tools) for exchange in found) >= 8
    size = sum(path.stat().st_size for path in builtin.heldout_path().rglob("*") if path.is_file())
    assert size < 500_000
