"""Tools that are called: the loop of question, calls, results and answer, with limits and a say for the caller."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.functions import describe
from edge_runtime.gemma.tools import check_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from edge_runtime.engine.protocol import Piece

MAX_STEPS = 8


@dataclass(frozen=True)
class ToolRequest:
    """A call before it is made.

    Attributes:
        name: The tool.
        arguments: What it is called with.
        step: 1 for the first answer of the model, and so on.
    """

    name: str
    arguments: dict[str, Any]
    step: int


def declared(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools for a request: functions described, JSON objects as they are.

    Raises:
        EdgeRuntimeError: Neither, or two of one name.
    """
    found = check_tools([describe(tool) if callable(tool) else tool for tool in tools])
    names = [tool["function"]["name"] for tool in found]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise EdgeRuntimeError(f"two tools have the name {twice}")
    return found


class ToolRun:
    """Iterate over it: the pieces of every step, calls being made in between.

    Example:
        run = model.run_tools([{"role": "user", "content": "Turn the heater off"}], [switch_off])
        print("".join(piece.text for piece in run))
        history = run.messages

    Attributes:
        messages: The conversation, with all that was said and called so far; when the run is over, with its answer.
        steps: Answers of the model so far.
        last: The last piece so far, None before the first.
    """

    def __init__(
        self,
        chat: Callable[..., Generator[Piece, None, None]],
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any],
        *,
        execute: Callable[[str, dict[str, Any]], Any] | None = None,
        approve: Callable[[ToolRequest], bool] | None = None,
        on_result: Callable[[ToolRequest, Any], None] | None = None,
        max_steps: int = MAX_STEPS,
        **options: Any,
    ) -> None:
        """See `Model.run_tools`."""
        if max_steps < 1:
            raise EdgeRuntimeError(f"max_steps is {max_steps}; it must be 1 or more")
        if not tools:
            raise EdgeRuntimeError("run_tools needs at least one tool")
        self._schemas = declared(tools)
        self._functions = {tool.__name__: tool for tool in tools if callable(tool)}
        bare = [name for tool in self._schemas if (name := tool["function"]["name"]) not in self._functions]
        if bare and execute is None:
            raise EdgeRuntimeError(f"the tool {bare[0]} is a JSON object: say with `execute` what calling it does")
        self._chat, self._options, self._max_steps = chat, options, max_steps
        self._execute, self._approve, self._on_result = execute, approve, on_result
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self.steps = 0
        self.last: Piece | None = None

    def __iter__(self) -> Iterator[Piece]:
        """Runs until the model answers without a call, or `max_steps` answers were given."""
        while self.steps < self._max_steps:
            self.steps += 1
            text = ""
            for piece in self._chat(self.messages, tools=self._schemas, **self._options):
                text += piece.text
                self.last = piece
                yield piece
            if self.last is None:
                return
            calls = self.last.tool_calls or []
            self.messages.append(_said(text, self.last, self.steps))
            if not calls:
                return
            for number, call in enumerate(calls):
                self.messages.append(self._answered(call, f"call_{self.steps}_{number}"))
            if self._options.get("tool_choice", "auto") not in ("auto", "none"):
                self._options["tool_choice"] = "auto"  # it was called: now it may answer

    @property
    def text(self) -> str:
        """The last answer's text."""
        return str(self.messages[-1]["content"]) if self.messages and self.messages[-1]["role"] == "assistant" else ""

    def _answered(self, call: dict[str, Any], identity: str) -> dict[str, Any]:
        """Makes one call; returns the message with its result."""
        request = ToolRequest(call["name"], call["arguments"], self.steps)
        result: Any
        if self._approve is not None and not self._approve(request):
            result = {"error": "the user does not allow this call"}
        else:
            result = self._call(request)
        if self._on_result is not None:
            self._on_result(request, result)
        return {"role": "tool", "name": request.name, "tool_call_id": identity, "content": _plain(result)}

    def _call(self, request: ToolRequest) -> Any:
        """What a tool gives; what goes wrong in it is told to the model, which may try again."""
        function = self._functions.get(request.name)
        if function is None and (self._execute is None or not self._known(request.name)):
            return {"error": f"there is no tool {request.name}"}
        try:
            if function is None:
                return self._execute(request.name, request.arguments) if self._execute else None
            inspect.signature(function).bind(**request.arguments)
            return function(**request.arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises
            return {"error": f"{type(error).__name__}: {error}"}

    def _known(self, name: str) -> bool:
        return any(tool["function"]["name"] == name for tool in self._schemas)


def _said(text: str, last: Piece, step: int) -> dict[str, Any]:
    """The model's answer as a message; thoughts go with calls, for the turn is not over yet."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if last.tool_calls:
        message["tool_calls"] = [
            {"id": f"call_{step}_{number}", "type": "function", "function": dict(call)}
            for number, call in enumerate(last.tool_calls)
        ]
        if last.thoughts:
            message["reasoning_content"] = last.thoughts
    return message


def _plain(result: Any) -> Any:
    """A tool's result as a message holds it: text, or an object."""
    if isinstance(result, str):
        return result
    try:
        plain = json.loads(json.dumps(result, default=str))
    except (TypeError, ValueError):
        return str(result)
    return plain if isinstance(plain, dict) else json.dumps(plain, ensure_ascii=False)
