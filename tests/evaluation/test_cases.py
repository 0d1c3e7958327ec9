from __future__ import annotations

import json

import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.cases import read_cases

TEXT = {"messages": [{"role": "user", "content": "Hello"}], "answer": "Hi", "group": "faq"}


def _write(folder, *lines):
    folder.mkdir(exist_ok=True, parents=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "cases.jsonl").write_text(text, encoding="utf-8")
    return folder


def _message(folder, kind):
    with pytest.raises(EdgeRuntimeError) as error:
        read_cases(folder, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_lines_in_order_skips_blank_ones_and_finds_the_media(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    folder = _write(
        tmp_path,
        {"audio": "a.wav", "text": "Hello.", "group": "seen"},
        "",
        {"audio": "a.wav", "text": "b", "group": "joe"},
    )
    cases = read_cases(folder, "wer")
    assert [(case.line, case.group, case.fields["audio"]) for case in cases] == [
        (1, "seen", tmp_path / "a.wav"),
        (3, "joe", tmp_path / "a.wav"),
    ]


def test_limit_counts_each_group(tmp_path):
    folder = _write(tmp_path, *[TEXT | {"group": group} for group in "aaabbc"])
    assert [case.group for case in read_cases(folder, "text", limit=2)] == list("aabbc")


def test_a_tools_case_is_typed_or_spoken(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    rest = {"tools": [], "calls": [], "group": "g"}
    folder = _write(tmp_path, {"messages": TEXT["messages"], **rest}, {"audio": "a.wav", **rest})
    assert len(read_cases(folder, "tools")) == 2
    assert ':1: a tools case needs "messages"' in _message(_write(tmp_path, rest), "tools")


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        ("{", "text", "not JSON"),
        ("[]", "text", "must be an object"),
        ({"messages": [], "group": "g"}, "text", 'needs "answer"'),
        ({"messages": "hi", "answer": "a", "group": "g"}, "text", '"messages" must be a list'),
        ({"messages": ["hi"], "answer": "a", "group": "g"}, "text", '"messages" must hold objects'),
        ({"audio": "gone.wav", "text": "a", "group": "g"}, "wer", "no such file"),
        ({"image": "gone.png", "question": "a", "answer": "b", "group": "g"}, "vision", "gone.png"),
        ({"messages": [], "answer": "a"}, "text", 'needs "group"'),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad, kind, says):
    folder = _write(tmp_path, "", bad)
    message = _message(folder, kind)
    assert message.startswith(f"{folder / 'cases.jsonl'}:2: ")
    assert says in message


def test_missing_empty_and_binary_files(tmp_path):
    assert "no such file" in _message(tmp_path / "nowhere", "wer")
    assert "holds no cases" in _message(_write(tmp_path / "empty"), "wer")
    (tmp_path / "cases.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "cases.jsonl" in _message(tmp_path, "wer")


def test_the_folder_above_a_set_points_to_the_set(tmp_path):
    _write(tmp_path / "wer", {"audio": "a", "text": "b", "group": "c"})
    assert f"did you mean {tmp_path / 'wer'}?" in _message(tmp_path, "wer")
