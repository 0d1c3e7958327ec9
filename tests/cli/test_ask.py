from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

import edge_runtime
from edge_runtime.cli.main import main
from edge_runtime.engine.model import Model
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `edge_runtime.load` gives; `engine.loaded` holds what it was called with."""
    fake: Any = FakeEngine("Yes, it is.")

    def load(path: str | None, *, progress: Any, **options: Any) -> Model:
        fake.loaded = {"path": path, **options}
        return Model(fake)

    monkeypatch.setattr(edge_runtime, "load", load, raising=False)
    return fake


def test_the_answer_is_printed(engine, capsys):
    assert main(["ask", "Is it?"]) == 0
    assert capsys.readouterr().out == "Yes, it is.\n"
    assert engine.requests[0].messages == [{"role": "user", "content": [{"type": "text", "text": "Is it?"}]}]
    assert engine.loaded == {"path": None, "threads": None, "context": None, "memory_budget": None}
    assert engine.closed


def test_text_streams(engine, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(
        "sys.stdout", type("Out", (io.StringIO,), {"flush": lambda self: shown.append(self.getvalue())})()
    )
    main(["ask", "Is it?"])
    assert shown[0] == "Y"
    assert shown[1] == "Ye"


def test_json_has_exactly_the_contracts_keys(engine, capsys):
    assert main(["ask", "--json", "Is it?"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "text": "Yes, it is.",
        "thoughts": "",
        "tool_calls": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 11},
        "timing": {"load_s": 0.1, "first_token_s": 0.2, "decode_tokens_per_s": 30.0},
    }


def test_media_come_first_in_the_order_given(engine, tmp_path: Path):
    for name in ("a.png", "b.png", "c.wav"):
        (tmp_path / name).write_bytes(b"x")
    files = ["--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "c.wav"), "--image", str(tmp_path / "b.png")]
    main(["ask", *files, "--system", "Be short.", "--think", "What?"])
    system, user = engine.requests[0].messages
    assert system == {"role": "system", "content": "Be short."}
    assert [item["type"] for item in user["content"]] == ["image", "image", "audio", "text"]
    assert engine.requests[0].think


def test_options_reach_the_model(engine):
    main(
        [
            "ask",
            "--model",
            "M",
            "--threads",
            "2",
            "--context",
            "99",
            "--max-tokens",
            "5",
            "--temperature",
            "0.5",
            "--seed",
            "7",
            "--image-tokens",
            "140",
            "Hi",
        ]
    )
    assert engine.loaded == {"path": "M", "threads": 2, "context": 99, "memory_budget": None}
    request = engine.requests[0]
    assert (request.max_tokens, request.sampling.temperature, request.sampling.seed) == (5, 0.5, 7)
    assert request.image_tokens == 140


def test_tools_come_from_a_file(engine, tmp_path: Path, capsys):
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    engine.tool_calls = [{"name": "f", "arguments": {"a": 1}}]
    assert main(["ask", "--tools", str(tmp_path / "tools.json"), "Do it"]) == 0
    assert engine.requests[0].tools[0]["function"]["name"] == "f"
    assert capsys.readouterr().out == 'Yes, it is.\n{"name": "f", "arguments": {"a": 1}}\n'


def test_raw_and_standard_input(engine, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon"))
    main(["ask", "--raw", "-"])
    assert engine.requests[0].raw == "Once upon"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--image", "none.png", "x"], "none.png: no such file"),
        (["--audio", "none.wav", "x"], "none.wav: no such file"),
        (["--video", "none.mp4", "x"], "none.mp4: no such file"),
        (["--schema", "none.json", "x"], "none.json: No such file"),
        (["--tools", "none.json", "x"], "none.json: No such file"),
        (["--raw", "--think", "--image-tokens", "70", "x"], "leave out --think, --image-tokens"),
        ([""], "the prompt is empty"),
        (["--max-tokens", "many", "x"], "--max-tokens"),
        ([], "PROMPT"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(engine, capsys, arguments, line):
    status: object
    try:
        status = main(["ask", *arguments])
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert line in captured.err
    assert captured.err.count("\n") == 1


def test_forms_and_sampling_reach_the_model(engine, tmp_path: Path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "a.mp4").write_bytes(b"x")
    words = ["--schema", str(tmp_path / "schema.json"), "--thinking-budget", "9", "--video", str(tmp_path / "a.mp4")]
    words += ["--top-k", "5", "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2", "--stop", "END"]
    main(["ask", *words, "Hi"])
    request = engine.requests[0]
    assert (request.schema, request.thinking_budget, request.stop) == ({"type": "object"}, 9, ["END"])
    assert (request.sampling.top_k, request.sampling.top_p, request.sampling.min_p) == (5, 0.9, 0.1)
    assert request.sampling.repetition_penalty == 1.2
    assert [item["type"] for item in request.messages[0]["content"]] == ["video", "text"]
    main(["ask", "--choice", "yes", "--choice", "no", "Hi"])
    assert engine.requests[1].choice == ["yes", "no"]
    main(["ask", "--raw", "--regex", "a+", "Hi"])
    assert engine.requests[2].regex == "a+"


def test_a_schema_that_is_none(engine, tmp_path: Path, capsys):
    (tmp_path / "schema.json").write_text("[1]")
    assert main(["ask", "--schema", str(tmp_path / "schema.json"), "x"]) == 2
    assert "is not a JSON schema" in capsys.readouterr().err


def test_a_tools_file_that_is_not_json(engine, tmp_path: Path, capsys):
    (tmp_path / "tools.json").write_text("[")
    assert main(["ask", "--tools", str(tmp_path / "tools.json"), "x"]) == 2
    assert "tools.json is not JSON" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["ask", "--help"])
    assert end.value.code == 0
    assert "edge-runtime ask --image front.jpg" in capsys.readouterr().out
