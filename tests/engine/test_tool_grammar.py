"""Calls of tools: what the grammar allows is what schemas demand, and whatever they allow can be written and read."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.engine.constrain import Forms
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tools import ToolCall, check_tools, parse_call
from tests.engine.schemas import Writer, schema
from tests.gemma import tiny
from tests.gemma.test_tools import QUOTE, written

TOKENIZER = tiny.tokenizer()
ENDS = set(TOKENIZER.encode("<eos><turn|>"))
FORMS = Forms(TOKENIZER, ENDS)
CLOSE = TOKENIZER.encode("<tool_call|>")[0]

LIGHT = {
    "name": "set_light",
    "parameters": {
        "type": "object",
        "properties": {
            "room": {"type": "string", "enum": ["kitchen", "bath/room"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "when": {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
            "o:dd": {"type": ["boolean", "null"]},
        },
        "required": ["room", "level"],
    },
}


def form(*tools: dict[str, Any]):
    return FORMS.call(check_tools(list(tools)))


def read(ids: list[int]) -> ToolCall:
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == TOKENIZER.control.quote:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return parse_call([TOKENIZER.decode(piece) for piece in pieces])


def accepts(text: str, *tools: dict[str, Any]) -> bool:
    call = form(*tools)
    for token in TOKENIZER.encode(text + "<tool_call|>"):
        if not call.allowed()[token]:
            return False
        call.push(token)
    return True


def random_call(call, seed: int) -> ToolCall:
    writer = Writer(TOKENIZER, {CLOSE}, seed)
    writer.bias[TOKENIZER.control.quote] = 4.0
    ids: list[int] = []
    while not ids or ids[-1] != CLOSE:
        assert len(ids) < 2000
        allowed = call.allowed().nonzero()[0]
        assert len(allowed)
        logits = writer.rng.normal(0, 1, len(allowed)) + writer.bias[allowed] * (len(ids) > 20)
        token = int(allowed[logits.argmax()])
        writer.bias[token] -= 0.1
        call.push(token)
        ids.append(token)
    return read(ids[:-1])


def test_a_model_that_knows_nothing_calls_what_is_declared_with_what_is_demanded():
    for seed in range(150):
        rng = random.Random(seed)
        parameters = {"type": "object", "required": [], **_members(rng)}
        call = random_call(form({"name": "do", "parameters": parameters}, LIGHT), seed)
        wanted = parameters if call.name == "do" else LIGHT["parameters"]
        jsonschema.Draft202012Validator(wanted).validate(call.arguments)


def _members(rng: random.Random) -> dict[str, Any]:
    """Properties of any kind, names of any kind."""
    names = rng.sample(["room", "level", "note", "a b", "q,t", "ключ", "x:y", "p{}"], rng.randint(1, 5))
    properties = {name: _simple(schema(rng, 1)) for name in names}
    return {
        "properties": properties,
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _simple(made: Any) -> Any:
    """Without what the grammar of calls does not hold: formats, keys beside known ones, items of given places."""
    if isinstance(made, list):
        return [_simple(item) for item in made]
    if not isinstance(made, dict):
        return made
    left = {key: _simple(value) for key, value in made.items() if key not in {"format", "prefixItems"}}
    if isinstance(left.get("additionalProperties"), dict):
        left["additionalProperties"] = False
    if left.get("items") is False:
        left["items"] = {}
    return left


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (f"call:set_light{{level:55,room:{QUOTE}kitchen{QUOTE}}}", True),
        (f"call:set_light{{room:{QUOTE}bath/room{QUOTE},level:0,when:{QUOTE}07:30{QUOTE}}}", True),
        (
            f"call:set_light{{level:1,tags:[{QUOTE}a{QUOTE},{QUOTE}b{QUOTE}],{QUOTE}o:dd{QUOTE}:null,room:{QUOTE}kitchen{QUOTE}}}",
            True,
        ),
        (f"call:set_light{{room:{QUOTE}kitchen{QUOTE}}}", False),  # a required key is missing
        (f"call:set_light{{level:101,room:{QUOTE}kitchen{QUOTE}}}", False),
        (f"call:set_light{{level:1,level:2,room:{QUOTE}kitchen{QUOTE}}}", False),
        (f"call:set_light{{level:1,room:{QUOTE}attic{QUOTE}}}", False),
        (f"call:set_light{{level:1,room:{QUOTE}kitchen{QUOTE},color:1}}", False),
        (f"call:set_light{{level:1,room:{QUOTE}kitchen{QUOTE},when:{QUOTE}7:30{QUOTE}}}", False),
        ("call:set_lights{}", False),
        ("call:other{}", False),
    ],
)
def test_names_keys_and_values(text, allowed):
    assert accepts(text, LIGHT) is allowed


def test_schemas_that_hold_themselves():
    tree = {
        "name": "grow",
        "parameters": {
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/node"}},
            "required": ["root"],
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                    "required": ["next"],
                }
            },
        },
    }
    assert accepts("call:grow{root:{next:{next:{next:null}}}}", tree)
    assert not accepts("call:grow{root:{next:{}}}", tree)


def test_free_arguments():
    free = {"name": "log", "parameters": {"type": "object", "properties": {"data": {}}, "required": ["data"]}}
    assert accepts(f"call:log{{data:{{a:[1,-2.5e3,true,null,{QUOTE}x}}]{QUOTE}],b:{{}}}}}}", free)
    anything = {"name": "log", "parameters": {"type": "object"}}
    assert accepts(f"call:log{{a:1,b:{QUOTE}{QUOTE}}}", anything)
    assert accepts("call:log{}", anything)
    assert not accepts("call:log{a:1}", {"name": "log", "parameters": {"type": "object", "properties": {}}})


def test_many_keys_come_in_the_order_of_the_alphabet():
    many = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in "hgfedcba"},
            "required": ["b", "g"],
        },
    }
    assert accepts("call:f{b:1,g:2}", many)
    assert accepts("call:f{a:0,b:1,c:1,d:1,e:1,f:1,g:2,h:3}", many)
    assert not accepts("call:f{a:0,b:1}", many)
    assert not accepts("call:f{g:2,b:1}", many)


def test_a_schema_that_makes_no_sense_still_has_its_tool_called():
    odd = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}}
    assert accepts(f"call:f{{a:{QUOTE}x{QUOTE}}}", odd)


def test_a_tokenizer_without_tokens_for_calls():
    class Bare:
        control = type("Control", (), {"quote": None, "call_close": None})
        size = 1

    with pytest.raises(EdgeRuntimeError, match="no tokens for tool calls"):
        Forms(Bare(), [0]).call([])  # type: ignore[arg-type]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "<" not in text)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e6, 1e6).filter(lambda x: "e" not in repr(x))
    | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


def of(value: Any) -> dict[str, Any]:
    """A schema that the value fits."""
    if value is None or isinstance(value, bool):
        return {"type": "null" if value is None else "boolean"}
    if isinstance(value, (int, float)):
        return {"type": "number"}
    if isinstance(value, str):
        return {"type": "string", "maxLength": len(value)}
    if isinstance(value, list):
        return {"type": "array", "items": {"anyOf": [of(item) for item in value]} if value else {}}
    return {"type": "object", "properties": {key: of(item) for key, item in value.items()}, "required": list(value)}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), VALUES, max_size=3))
def test_any_arguments_pass_the_grammar_of_their_schema_and_come_back(arguments):
    tool = {"name": "do_it", "parameters": of(arguments)}
    call = form(tool)
    ids = TOKENIZER.encode(f"call:do_it{written(arguments)}<tool_call|>")
    for token in ids:
        assert call.allowed()[token]
        call.push(token)
    assert read(ids[:-1]) == ToolCall("do_it", arguments)
