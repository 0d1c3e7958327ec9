"""The grammar of tool calls in Gemma's syntax, from the JSON schemas of the tools, in llguidance's Lark.

Gemma writes `call:NAME{key:value,...}` with bare keys and strings between two `<|"|>` tokens (see `gemma.tools`). The
grammar holds names, keys, types, enums, required keys, lengths, patterns and number ranges. Keys may come in any order
where an object has up to `ANY_ORDER` of them, else in the order of the alphabet, in which the chat template shows them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ANY_ORDER = 6
"""An object with n keys takes 2^n rules to allow any order."""
MOST_ITEMS = 1000
"""Longer strings and lists are not counted."""
MAX_DEPTH = 16

_ANY = r"(.|\n)"
_BARE_KEY = r"[^:{}\[\],\" \n]+"
_PLAIN_KEY = re.compile(r"[^:{}\[\],\"\s<|>]+")
_NUMBER_KEYS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def call_grammar(tools: Sequence[Mapping[str, Any]], quote: str, close: str, *, loose: bool = False) -> str:
    """Lark for one call of any of `tools`, ended by the token `close`.

    Args:
        tools: As `gemma.tools.check_tools` gives them.
        quote: The quote token, as Lark writes one: `<[52]>`.
        close: The token that ends a call.
        loose: Hold the names of the tools and the syntax only.
    """
    grammar = _Grammar(quote)
    calls = []
    for tool in tools:
        function = tool["function"]
        schema = {"type": "object"} if loose else function["parameters"]
        calls.append(f"{_literal(function['name'])} {grammar.value(schema, schema)}")
    called = grammar.rule(" | ".join(calls))
    return "\n".join([f'start: "call:" {called} {close}', *grammar.lines])


class _Grammar:
    """Collects rules, each a line `name: alternatives`."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._names: dict[str, str] = {}
        self._refs: dict[tuple[int, str], str] = {}
        self._any: str | None = None
        self.lines: list[str] = []

    def rule(self, body: str) -> str:
        """The name of a rule with this body."""
        if body not in self._names:
            self._names[body] = f"r{len(self._names)}"
            self.lines.append(f"{self._names[body]}: {body}")
        return self._names[body]

    def value(self, schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
        """A rule for the values of a schema; `root` is where its references lead."""
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return self._free()
        if isinstance(reference := schema.get("$ref"), str):
            return self._reference(reference, root)
        if "const" in schema:
            return self.rule(self._constant(schema["const"]))
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self.rule(" | ".join(self._constant(value) for value in schema["enum"]))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self.rule(" | ".join(self.value(part, root, depth + 1) for part in schema[key]))
        kind = schema.get("type")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else None
        kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else []
        kinds = [*kinds, "null"] if schema.get("nullable") is True else kinds
        makers: dict[str, Callable[[], str]] = {
            "string": lambda: self._string(schema),
            "integer": lambda: _number(schema, "integer"),
            "number": lambda: _number(schema, "number"),
            "boolean": lambda: '"true" | "false"',
            "null": lambda: '"null"',
            "array": lambda: self._array(schema, root, depth),
            "object": lambda: self._object(schema, root, depth),
        }
        known = [makers[name.lower()]() for name in kinds if isinstance(name, str) and name.lower() in makers]
        return self.rule(" | ".join(known)) if known else self._free()

    def _reference(self, reference: str, root: Mapping[str, Any]) -> str:
        """A rule of its own for each reference, so that a schema may hold itself."""
        key = (id(root), reference)
        if key not in self._refs:
            target: Any = root
            for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            self._refs[key] = f"ref{len(self._refs)}"
            self.lines.append(f"{self._refs[key]}: {self.value(target, root)}")
        return self._refs[key]

    def _quoted(self, inner: str) -> str:
        return f"{self._quote} {inner} {self._quote}".replace("  ", " ")

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
        if isinstance(pattern := schema.get("pattern"), str) and pattern:
            return self._quoted(f"/{_slashes(_unanchored(pattern))}/")
        if most == 0:
            return self._quoted("")
        if not least and most is None:
            return self._quoted(f"/{_ANY}*/")
        return self._quoted(f"/{_ANY}{{{least},{'' if most is None else most}}}/")

    def _array(self, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", None)
        if most == 0:
            return '"[" "]"'
        item = self.value(schema.get("items", {}), root, depth + 1)
        more = self.rule(f'"," {item}')
        rest = "" if most == 1 else f"{more}{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        return f'"[" {item} {rest} "]"' + ("" if least else ' | "[" "]"')

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
        given = schema.get("properties")
        properties = given if isinstance(given, dict) else {}
        if not properties and schema.get("additionalProperties") is not False and depth:
            return self._free_object(schema, root, depth)
        if not properties and "properties" not in schema and schema.get("additionalProperties") is not False:
            return self._free_object(schema, root, depth)
        keys = sorted(properties, key=str.lower)
        demanded = schema.get("required")
        required = {key for key in demanded if key in properties} if isinstance(demanded, list) else set()
        pairs = [self.rule(f"{self._key(key)} {self.value(properties[key], root, depth + 1)}") for key in keys]
        wanted = [key in required for key in keys]
        body = self._any_order(pairs, wanted) if len(keys) <= ANY_ORDER else self._in_order(pairs, wanted)
        return f'"{{" {body} "}}"'

    def _any_order(self, pairs: list[str], wanted: list[bool]) -> str:
        """Each pair at most once, the wanted ones once: a rule for each set of pairs that are still to come."""
        rules: dict[tuple[int, bool], str] = {}

        def rest(left: int, first: bool) -> str:
            if (left, first) not in rules:
                comma = "" if first else '"," '
                ways = [
                    f"{comma}{pair} {rest(left & ~(1 << at), False)}"
                    for at, pair in enumerate(pairs)
                    if left & (1 << at)
                ]
                if not any(must and left & (1 << at) for at, must in enumerate(wanted)):
                    ways.append('""')
                rules[left, first] = self.rule(" | ".join(ways))
            return rules[left, first]

        return rest((1 << len(pairs)) - 1, True)

    def _in_order(self, pairs: list[str], wanted: list[bool]) -> str:
        """The pairs in the order of the alphabet; those that are not wanted may be left out."""
        later, first = '""', '""'
        for pair, must in reversed(list(zip(pairs, wanted, strict=True))):
            with_comma, alone = f'"," {pair} {later}', f"{pair} {later}"
            first = self.rule(alone if must else f"{alone} | {first}")
            later = self.rule(with_comma if must else f"{with_comma} | {later}")
        return first

    def _free_object(self, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
        """An object of any keys."""
        extra = schema.get("additionalProperties")
        value = self.value(extra, root, depth + 1) if isinstance(extra, dict) and extra else self._free()
        pair = self.rule(f'/{_BARE_KEY}/ ":" {value}')
        more = self.rule(f'"," {pair}')
        return f'"{{" {pair} {more}* "}}" | "{{" "}}"'

    def _free(self) -> str:
        """Any value."""
        if self._any is None:
            self._any = "anything"
            numbers, strings = _number({}, "number"), self._quoted(f"/{_ANY}*/")
            pair = self.rule(f'/{_BARE_KEY}/ ":" anything')
            lists = '"[" anything ("," anything)* "]" | "[" "]"'
            objects = f'"{{" {pair} ("," {pair})* "}}" | "{{" "}}"'
            self.lines.append(f'anything: {strings} | {numbers} | "true" | "false" | "null" | {lists} | {objects}')
        return self._any

    def _key(self, key: str) -> str:
        if _PLAIN_KEY.fullmatch(key):
            return f"{_literal(key + ':')}"
        return f'{self._quoted(_literal(key) if key else "")} ":"'

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return self._quoted(_literal(value) if value else "")
        if isinstance(value, dict):
            pairs = [f"{self._key(str(key))} {self._constant(item)}" for key, item in sorted(value.items())]
            return '"{" ' + ' "," '.join(pairs) + ' "}"'
        if isinstance(value, list):
            return '"[" ' + ' "," '.join(map(self._constant, value)) + ' "]"'
        return _literal(json.dumps(value))


def _number(schema: Mapping[str, Any], kind: str) -> str:
    """Numbers as JSON writes them, ranges by llguidance's own arithmetic."""
    return "%json " + json.dumps({"type": kind, **{key: schema[key] for key in _NUMBER_KEYS if key in schema}})


def _count(schema: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    value = schema.get(key)
    return value if isinstance(value, int) and 0 <= value <= MOST_ITEMS else otherwise


def _unanchored(pattern: str) -> str:
    """A schema's pattern, which may match anywhere, as one that matches the whole."""
    begin = "" if pattern.startswith("^") else f"{_ANY}*"
    end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else f"{_ANY}*"
    inner = pattern.removeprefix("^")
    return f"{begin}({inner[:-1] if not end else inner}){end}"


def _slashes(pattern: str) -> str:
    """With its slashes escaped, as between slashes they must be."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern).replace("\n", r"\n")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
