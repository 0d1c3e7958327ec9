from __future__ import annotations

from enum import Enum
from typing import Any, Literal, TypedDict

import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.functions import describe


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Point(TypedDict):
    x: float
    y: float


def weather(city: str, days: int = 3, unit: Literal["c", "f"] = "c", tags: list[str] | None = None) -> str:
    """Says what the weather will be.

    In a city.

    Args:
        city: Name of the city,
            with its country.
        days: How many days.
        tags: Anything.

    Returns:
        A sentence: or two.
    """
    return city + unit + str(days) + str(tags)


def test_signature_and_docstring():
    assert describe(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says what the weather will be.\n\nIn a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city, with its country."},
                    "days": {"type": "integer", "description": "How many days."},
                    "unit": {"type": "string", "enum": ["c", "f"]},
                    "tags": {
                        "type": "array", "items": {"type": "string"}, "nullable": True, "description": "Anything."
                    },
                },
                "required": ["city"],
            },
        },
    }  # fmt: skip


def parameters(function) -> dict[str, Any]:
    found: dict[str, Any] = describe(function)["function"]["parameters"]
    return found


def test_types():
    def f(
        a: dict[str, int],
        b: Mode,
        c: tuple[int, str],
        d: int | str,
        e: Point,
        f: Any,
        g: list,  # type: ignore[type-arg]
        h: dict,  # type: ignore[type-arg]
        i: None,
        j,
    ) -> None: ...

    assert parameters(f)["properties"] == {
        "a": {"type": "object", "additionalProperties": {"type": "integer"}},
        "b": {"type": "string", "enum": ["fast", "slow"]},
        "c": {
            "type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2
        },
        "d": {"type": ["integer", "string"]},
        "e": {
            "type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x", "y"]
        },
        "f": {},
        "g": {"type": "array"},
        "h": {"type": "object"},
        "i": {"type": "null"},
        "j": {},
    }  # fmt: skip


def test_methods_and_functions_without_anything():
    class Lamp:
        def switch(self, *rest: int, on: bool, **more: int) -> None:
            """Switches."""

    assert parameters(Lamp().switch) == {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]
    }  # fmt: skip

    def bare(): ...

    assert describe(bare)["function"] == {
        "name": "bare", "description": "", "parameters": {"type": "object", "properties": {}}
    }  # fmt: skip


def test_choices_in_the_docstring():
    def f(state: str) -> None:
        """Switch.

        Args:
            state: What to do (choices: ["on", "off"])
        """

    assert parameters(f)["properties"]["state"] == {
        "type": "string", "enum": ["on", "off"], "description": "What to do"
    }  # fmt: skip


def test_what_cannot_be_described():
    def f(a: bytes) -> None: ...

    with pytest.raises(EdgeRuntimeError, match="tool f: a: no JSON stands for the type bytes"):
        describe(f)
    with pytest.raises(EdgeRuntimeError, match="function with a name"):
        describe(lambda: 1)
    with pytest.raises(EdgeRuntimeError, match="function with a name"):
        describe(3)  # type: ignore[arg-type]

    def g(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(EdgeRuntimeError, match="type hints cannot be read"):
        describe(g)


@pytest.mark.oracle
def test_declarations_are_those_of_transformers():
    from transformers.utils import get_json_schema

    def f(city: str, days: int, exact: bool, ratio: float, tags: list[str], state: str, extra: dict[str, int]) -> str:
        """Says it.

        Args:
            city: The city.
            days: How many.
            exact: Whether.
            ratio: A number.
            tags: Names.
            state: What (choices: ["on", "off"])
            extra: More.
        """
        return ""

    def g(a: int | None = None, b: int | str = 1) -> str:
        """Says that.

        Args:
            a: One.
            b: Two.
        """
        return ""

    for function in (f, g):
        theirs = get_json_schema(function)
        theirs["function"].pop("return", None)
        assert describe(function) == theirs
