from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tools import check_tools, parse_call

QUOTE = '<|"|>'


def parse(text: str) -> Any:
    return parse_call(text.split(QUOTE))


def written(value: Any) -> str:
    """A value in Gemma's call syntax."""
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return "null" if value is None else repr(value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text().filter(lambda text: QUOTE not in text),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), VALUES, max_size=4))
def test_any_arguments_come_back(arguments):
    call = parse(f"call:do_it{written(arguments)}")
    assert call.name == "do_it"
    assert call.arguments == arguments


def test_numbers_keep_their_kind():
    arguments = parse("call:f{a:3,b:-2.5,c:1e3,d:007}").arguments
    assert arguments == {"a": 3, "b": -2.5, "c": 1000.0, "d": 7}
    assert [type(value) for value in arguments.values()] == [int, float, float, int]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("warm white", "warm white"),
        ("12:30", "12:30"),
        ("nan", "nan"),
        ("1_000", "1_000"),
        ("-inf", "-inf"),
        ('"x, y"', "x, y"),
    ],
)
def test_what_a_small_model_may_write_without_quotes(text, value):
    assert parse(f"call:f{{a:{text}}}").arguments == {"a": value}


def test_quoted_keys_and_blanks():
    assert parse(f"call:f {{ {QUOTE}a{QUOTE} : 1 , b : [ 1 , 2 ] }} ").arguments == {"a": 1, "b": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        *("", "f{}", "call:", "call:f", "call:{}", "call:f{", "call:f{a}", "call:f{a:}", "call:f{a:1", "call:f{a:1}x"),
        *("call:f{a:[1,}", "call:f{a:[1}", f"call:f{{a:{QUOTE}x}}", f"call:f{{a:{QUOTE}x{QUOTE}y}}"),
        *("call:f{a:" + "[" * 50 + "]" * 50 + "}", 'call:f{a:"x}'),
    ],
)
def test_broken_calls_are_value_errors(text):
    with pytest.raises(ValueError):  # noqa: PT011 - any
        parse(text)


@given(st.lists(st.text('calf:{}[],"1 \n'), min_size=1, max_size=5))
def test_garbage_never_raises_anything_else(pieces):
    with contextlib.suppress(ValueError):
        parse_call(["call:f{" + pieces[0], *pieces[1:]])


def test_check_tools_wraps_and_completes():
    assert check_tools([{"name": "f"}]) == [
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    whole = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"properties": {}, "type": "object"}},
    }
    assert check_tools([whole]) == [whole]
    assert list(check_tools([whole])[0]["function"]["parameters"]) == ["properties", "type"]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("x", "must be a list"),
        ([3], "tool 1 is not a JSON object"),
        ([{"type": "function"}], "tool 1 has no function name"),
        ([{"name": "f"}, {"name": ""}], "tool 2 has no function name"),
        ([{"name": "f", "parameters": []}, {"name": "g", "parameters": [1]}], "tool g: parameters must be"),
    ],
)
def test_check_tools_refuses_in_one_line(tools, message):
    with pytest.raises(EdgeRuntimeError, match=message):
        check_tools(tools)


# The kinds of calls that llama.cpp's parser of this format is tested with: what it makes of them, we make.
@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        (f"call:get_time{{city:{QUOTE}London{QUOTE}}}", "get_time", {"city": "London"}),
        ("call:no_args{}", "no_args", {}),
        (f"call:f{{a:{QUOTE}{QUOTE}}}", "f", {"a": ""}),
        (
            f"call:f{{code:{QUOTE}def g(x):\n  return {{'a': [1, 2]}}{QUOTE}}}",
            "f",
            {"code": "def g(x):\n  return {'a': [1, 2]}"},
        ),
        (f'call:f{{a:{QUOTE}she said "no", then: }}]{QUOTE}}}', "f", {"a": 'she said "no", then: }]'}),
        (
            "call:f{n:42,x:-3.5,e:1e-3,t:true,f:false,z:null}",
            "f",
            {"n": 42, "x": -3.5, "e": 0.001, "t": True, "f": False, "z": None},
        ),
        (f"call:f{{o:{{p:{{q:[1,[2,{{r:{QUOTE}s{QUOTE}}}]]}}}}}}", "f", {"o": {"p": {"q": [1, [2, {"r": "s"}]]}}}),
        ("call:f{l:[],o:{}}", "f", {"l": [], "o": {}}),
        (f"call:ns.tool-1_x{{a:[{QUOTE}b{QUOTE},{QUOTE}c, d{QUOTE}]}}", "ns.tool-1_x", {"a": ["b", "c, d"]}),
        (f"call:f{{t:{QUOTE}call:g{{x:1}}{QUOTE}}}", "f", {"t": "call:g{x:1}"}),
        (f"call:f{{u:{QUOTE}naïve 🙂 \\n{QUOTE}}}", "f", {"u": "naïve 🙂 \\n"}),
    ],
)
def test_calls_of_every_kind(text, name, arguments):
    call = parse(text)
    assert (call.name, call.arguments) == (name, arguments)
