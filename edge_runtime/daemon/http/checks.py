"""Checks of single values in a request's JSON, each of which names the parameter that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.http.problems import bad

if TYPE_CHECKING:
    from collections.abc import Callable


def text(param: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise bad(param, "must be a string")
    return value


def truth(param: str, value: Any) -> bool:
    """Either true or false."""
    if not isinstance(value, bool):
        raise bad(param, "must be true or false")
    return value


def mapping(param: str, value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise bad(param, "must be an object")
    return value


def items(param: str, value: Any, most: int, least: int = 0) -> list[Any]:
    """A list of `least` to `most` items."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise bad(param, f"must be a list of {least} to {most} items")
    return value


def member(*known: str) -> Callable[[str, Any], str]:
    """One of some words."""

    def check(param: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise bad(param, f"must be one of {', '.join(known)}")
        return value

    return check


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """A whole number within limits; JSON's `1.0` is one."""

    def check(param: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise bad(param, f"must be a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Callable[[str, Any], float]:
    """A number within limits."""

    def check(param: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise bad(param, f"must be a number from {low:g} to {high:g}")
        return value

    return check
