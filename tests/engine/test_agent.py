"""The loop of calls and results: with a scripted model for its rules, with the built-in one for real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.engine.agent import ToolRun
from edge_runtime.engine.model import Model
from edge_runtime.engine.protocol import Piece
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Generator

    from edge_runtime.engine.onnx.engine import OnnxEngine

QUESTION = [{"role": "user", "content": "Is it warm?"}]


class Script:
    """Answers in order: text, or calls with what was thought before them."""

    def __init__(self, *answers: str | list[tuple[str, dict[str, Any]]], thoughts: str = "") -> None:
        self.answers, self.thoughts = list(answers), thoughts
        self.asked: list[list[dict[str, Any]]] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, messages: list[dict[str, Any]], **options: Any) -> Generator[Piece, None, None]:
        self.asked.append([dict(message) for message in messages])
        self.options.append(dict(options))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, str):
            yield Piece(answer)
            yield Piece("", finish_reason="stop", tool_calls=[], thoughts="")
            return
        calls = [{"name": name, "arguments": arguments} for name, arguments in answer]
        yield Piece("", finish_reason="tool_calls", tool_calls=calls, thoughts=self.thoughts)


def measure(room: str) -> dict[str, int]:
    """Measures.

    Args:
        room: Where.
    """
    if room == "cellar":
        raise ValueError("no sensor there")
    return {"degrees": 21}


def run(script: Script, tools: list[Any] | None = None, **options: Any) -> tuple[str, ToolRun]:
    made = ToolRun(script, QUESTION, tools or [measure], **options)
    return "".join(piece.text for piece in made), made


def test_results_go_back_into_the_same_turn_with_the_thoughts_that_led_to_the_call():
    script = Script([("measure", {"room": "hall"})], "It is 21 degrees.", thoughts="I must measure.")
    text, made = run(script)
    assert text == made.text == "It is 21 degrees."
    call, result = script.asked[1][1:]
    assert call["reasoning_content"] == "I must measure."
    assert call["tool_calls"][0]["function"] == {"name": "measure", "arguments": {"room": "hall"}}
    assert result == {
        "role": "tool", "name": "measure", "tool_call_id": call["tool_calls"][0]["id"], "content": {"degrees": 21}
    }  # fmt: skip
    assert [message["role"] for message in made.messages] == ["user", "assistant", "tool", "assistant"]
    assert "reasoning_content" not in made.messages[-1]
    assert script.options[0]["tools"][0]["function"]["parameters"]["required"] == ["room"]


def test_several_calls_of_one_answer_are_made_in_order():
    done: list[str] = []

    def note(text: str) -> str:
        done.append(text)
        return f"noted {text}"

    script = Script([("note", {"text": "a"}), ("note", {"text": "b"})], "Both.")
    _, made = run(script, [note])
    assert done == ["a", "b"]
    assert [message["content"] for message in made.messages if message["role"] == "tool"] == ["noted a", "noted b"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("measure", {"room": "cellar"}), "ValueError: no sensor there"),
        (("measure", {"place": "hall"}), "TypeError: missing a required argument: 'room'"),
        (("destroy", {}), "there is no tool destroy"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(call, error):
    _, made = run(Script([call], "Sorry."))
    assert made.messages[2]["content"] == {"error": error}


def test_nothing_is_called_that_is_not_approved():
    called: list[str] = []

    def open_door(door: str) -> None:
        called.append(door)

    asked: list[Any] = []

    def approve(request: Any) -> bool:
        asked.append((request.name, request.arguments, request.step))
        return False

    _, made = run(Script([("open_door", {"door": "front"})], "I may not."), [open_door], approve=approve)
    assert called == []
    assert asked == [("open_door", {"door": "front"}, 1)]
    assert "does not allow" in made.messages[2]["content"]["error"]


def test_a_model_that_calls_for_ever_is_stopped():
    script = Script([("measure", {"room": "hall"})])
    _, made = run(script, max_steps=3)
    assert made.steps == len(script.asked) == 3
    assert made.messages[-1]["role"] == "tool"


def test_a_required_call_is_required_once():
    script = Script([("measure", {"room": "hall"})], "Warm.")
    run(script, tool_choice="required")
    assert [options["tool_choice"] for options in script.options] == ["required", "auto"]


def test_json_tools_are_executed_by_the_caller():
    schema = {"name": "lookup", "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}
    results: list[Any] = []
    _, made = run(
        Script([("lookup", {"key": "x"})], "Found."),
        [schema],
        execute=lambda name, arguments: [name, arguments],
        on_result=lambda request, result: results.append((request.name, result)),
    )
    assert results == [("lookup", ["lookup", {"key": "x"}])]
    assert made.messages[2]["content"] == '["lookup", {"key": "x"}]'


@pytest.mark.parametrize(
    ("tools", "options", "line"),
    [
        ([], {}, "at least one tool"),
        ([{"name": "x"}], {}, "say with `execute`"),
        ([measure, measure], {}, "two tools have the name measure"),
        ([measure], {"max_steps": 0}, "max_steps is 0"),
        ([lambda: 1], {}, "a function with a name"),
    ],
)
def test_what_cannot_run_is_said_at_once(tools, options, line):
    with pytest.raises(EdgeRuntimeError, match=line):
        Model(FakeEngine()).run_tools(QUESTION, tools, **options)


def set_light(room: str, state: str) -> dict[str, str]:
    """Switch a light

    Args:
        room: The room
        state: On or off (choices: ["on", "off"])
    """
    return {"status": "ok"}


def test_the_built_in_model_calls_and_answers(engine: OnnxEngine):
    model = Model(engine)
    calls: list[Any] = []
    made = model.run_tools(
        [{"role": "user", "content": "Turn on the kitchen light."}],
        [set_light],
        on_result=lambda request, _: calls.append((request.name, request.arguments)),
    )
    text = "".join(piece.text for piece in made)
    assert calls == [("set_light", {"room": "kitchen", "state": "on"})]
    assert "light is on" in text
    assert made.last.finish_reason == "stop"


def test_a_call_is_given_with_the_piece_that_completes_it(engine: OnnxEngine):
    pieces = list(Model(engine).chat([{"role": "user", "content": "Turn on the kitchen light."}], tools=[set_light]))
    assert [piece.tool_call for piece in pieces if piece.tool_call] == pieces[-1].tool_calls
    assert pieces[-1].finish_reason == "tool_calls"
