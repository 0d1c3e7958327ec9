"""The runner and the command line, with a model that answers from a script."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import edge_runtime
from edge_runtime.cli.main import main
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.cases import read_cases
from edge_runtime.evaluation.runner import evaluate

CALL = {"name": "set_light", "arguments": {"room": "office", "state": "on"}}


class Scripted:
    """Gives the next entry of `answers`; a string, a list of calls, or an exception."""

    def __init__(self, *answers):
        self.info = {"name": "scripted", "modalities": ["text"], "context": 1}
        self.answers = list(answers)
        self.asked = []
        self.closed = False

    def _next(self, *what):
        self.asked.append(what)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def chat(self, messages, **options):
        answer = self._next(messages, options)
        if isinstance(answer, list):
            yield SimpleNamespace(text="", tool_calls=answer)
        else:
            for letter in answer:
                yield SimpleNamespace(text=letter, tool_calls=None)
            yield SimpleNamespace(text="", tool_calls=[])

    def transcribe(self, source, **options):
        return SimpleNamespace(text=self._next(source, options))

    def close(self):
        self.closed = True


def _folder(tmp_path, *cases):
    for name in ("a.wav", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return tmp_path


@pytest.fixture
def speech(tmp_path):
    texts = [("Turn on the light.", "seen"), ("Open the door.", "seen"), ("Play jazz music now.", "joe")]
    return _folder(tmp_path, *[{"audio": "a.wav", "text": text, "group": group} for text, group in texts])


@pytest.fixture
def use(monkeypatch):
    """Makes `edge_runtime.load` return a given model."""

    def install(model):
        monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: model, raising=False)
        return model

    return install


def test_word_error_rate_is_edits_over_expected_words(speech):
    model = Scripted("turn on the light", "Open a big door", "Play jazz music now.")
    report = evaluate(model, "wer", read_cases(speech, "wer"))
    assert (report.total.errors, report.total.weight, report.total.right) == (2, 11, 2)
    assert report.groups["seen"].rate == pytest.approx(2 / 7)
    assert report.groups["joe"].rate == 0
    assert model.asked[0][0] == speech / "a.wav"


def test_a_case_that_breaks_counts_as_wrong_and_is_reported(speech):
    model = Scripted("Turn on the light.", EdgeRuntimeError("no such thing"), ValueError())
    report = evaluate(model, "wer", read_cases(speech, "wer"))
    assert (report.total.errors, report.total.failed) == (7, 2)
    failures = report.to_dict()["failures"]
    assert failures[0] == {"line": 2, "group": "seen", "error": "no such thing"}
    assert failures[1]["error"] == "ValueError"


def test_vision_asks_about_the_picture_greedily(tmp_path):
    case = {"image": "a.png", "question": "What color is it?", "answer": "Red.", "group": "color"}
    model = Scripted("red", "green")
    report = evaluate(model, "vision", read_cases(_folder(tmp_path, case, case), "vision"))
    assert report.total.right == 1
    messages, options = model.asked[0]
    assert messages[0]["content"] == [
        {"type": "image", "image": tmp_path / "a.png"},
        {"type": "text", "text": "What color is it?"},
    ]
    assert options["temperature"] == 0


def test_tools_typed_spoken_and_none_wanted(tmp_path):
    schema = [{"type": "function", "function": {"name": "set_light"}}]
    typed = {"messages": [{"role": "user", "content": "on"}], "tools": schema, "calls": [CALL], "group": "typed"}
    spoken = {"audio": "a.wav", "tools": schema, "calls": [CALL], "group": "spoken"}
    none = typed | {"calls": [], "group": "none"}
    folder = _folder(tmp_path, typed, spoken, none, none, typed)
    model = Scripted([CALL], [CALL], "Sorry.", [CALL], RuntimeError("broken"))
    report = evaluate(model, "tools", read_cases(folder, "tools"))
    assert [outcome.right for outcome in report.outcomes] == [True, True, True, False, False]
    assert model.asked[1][0] == [{"role": "user", "content": [{"type": "audio", "audio": tmp_path / "a.wav"}]}]
    assert model.asked[0][1]["tools"] == schema


def test_a_failing_case_that_wants_no_call_is_not_right(tmp_path):
    case = {"messages": [{"role": "user", "content": "x"}], "tools": [], "calls": [], "group": "none"}
    report = evaluate(Scripted(RuntimeError("x")), "tools", read_cases(_folder(tmp_path, case), "tools"))
    assert (report.total.right, report.total.failed) == (0, 1)


def test_progress_counts_up_to_the_total(speech):
    seen = []
    evaluate(Scripted("a", "b", "c"), "wer", read_cases(speech, "wer"), lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_command_prints_json(speech, use, capsys):
    model = use(Scripted("Turn on the light.", "Open the tall door.", "Play jazz music now."))
    assert main(["eval", "wer", str(speech), "--json", "--show-wrong"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "scripted"
    assert (report["wer"], report["words"], report["cases"], report["exact"]) == (0.0909, 11, 3, 0.6667)
    assert report["groups"]["joe"] == {"wer": 0.0, "words": 4, "cases": 1, "failed": 0, "exact": 1.0}
    assert [entry["line"] for entry in report["wrong"]] == [2]
    assert report["seconds"] >= 0
    assert model.closed


def test_command_prints_a_table_and_what_was_wrong(speech, use, capsys):
    use(Scripted("Turn on the light.", "Open the floor.", OSError("disk")))
    assert main(["eval", "wer", str(speech), "--show-wrong"]) == 1
    out = capsys.readouterr().out
    assert "found:    Open the floor." in out
    assert "found:    disk" in out
    assert "overall" in out
    assert "1 could not be run" in out


def test_command_limits_each_group(speech, use, capsys):
    use(Scripted("Turn on the light.", "Play jazz music now."))
    assert main(["eval", "wer", str(speech), "--limit", "1"]) == 0
    assert "scripted: 2 cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "mmlu", "x"],
        ["eval", "kld", "--limit", "0"],
        ["eval", "wer"],
        ["eval", "wer", "x", "--limit", "0"],
        ["eval", "wer", "x", "--limit", "b"],
    ],
)
def test_wrong_use_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wrong_folder_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    assert main(["eval", "text", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"edge-runtime: {tmp_path / 'cases.jsonl'}: no such file\n"
