"""Random JSON schemas of every kind that is supported, and random logits that write text in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import random

    from edge_runtime.engine.constrain import Form
    from edge_runtime.gemma.tokenizer import Tokenizer

WORDS = ("room", "level", "on", "when", "note", "x", "naïve", "a b", 'q"t', "ключ", "back\\slash", "🙂")


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema; most have members."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "array", "object", "anyOf", "nullable"]
    kind = "object" if depth == 0 and rng.random() < 0.7 else rng.choice(kinds if depth < 3 else kinds[:7])
    if kind == "string":
        return _string(rng)
    if kind in {"integer", "number"}:
        return _number(rng, kind)
    if kind in {"boolean", "null"}:
        return {"type": kind}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, -2.5, True, None, "", 1_000_000], rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice(["fixed", 7, False, None, ["a", 1], {"k": "v"}])}
    if kind == "array":
        return _array(rng, depth)
    if kind == "object":
        return _object(rng, depth)
    if kind == "anyOf":
        return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    return {"type": [rng.choice(["string", "integer", "boolean"]), "null"]}


def _string(rng: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    dice = rng.random()
    if dice < 0.3:
        least = rng.randint(0, 4)
        made |= {"minLength": least, "maxLength": least + rng.randint(0, 20)}
    elif dice < 0.5:
        made["pattern"] = rng.choice(
            ["^[a-z]{1,8}$", "^[0-9]{2}:[0-9]{2}$", "^(on|off)$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$"]
        )
    elif dice < 0.6:
        made["format"] = rng.choice(["date", "time", "date-time", "uuid", "email", "ipv4"])
    return made


def _number(rng: random.Random, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {"type": kind}
    if rng.random() < 0.6:
        low = rng.randint(-1000, 1000)
        made["minimum" if rng.random() < 0.7 else "exclusiveMinimum"] = low
        if rng.random() < 0.8:
            made["maximum"] = low + rng.randint(2, 5000)
    if kind == "integer" and rng.random() < 0.1:
        made = {"type": kind, "multipleOf": rng.choice([2, 5, 10])}
    return made


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": schema(rng, depth + 1)}
    if rng.random() < 0.6:
        least = rng.randint(0, 2)
        made |= {"minItems": least, "maxItems": least + rng.randint(0, 3)}
    if rng.random() < 0.1:
        prefix = [schema(rng, depth + 1) for _ in range(rng.randint(1, 2))]
        made = {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(prefix)}
    return made


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randint(0 if depth else 1, 5))
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }
    if rng.random() < 0.15:
        made["additionalProperties"] = _number(rng, "integer")
    if rng.random() < 0.1 and depth == 0:
        made["$defs"] = {"item": _string(rng)}
        made["properties"]["ref"] = {"$ref": "#/$defs/item"}
    if rng.random() < 0.1 and depth == 0:
        made["$defs"] = {
            **made.get("$defs", {}),
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 5},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
        }
        made["properties"]["tree"] = {"$ref": "#/$defs/tree"}
    return made


class Writer:
    """Writes text in a form as a model would that knows nothing: random logits, a liking for what closes."""

    def __init__(self, tokenizer: Tokenizer, ends: set[int], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        closing = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        self.bias = np.array([4.0 if text[:1] in b'"}]' and text else 0.0 for text in closing], np.float32)
        self.bias[list(ends)] = 6.0
        self.ends = ends

    def write(self, form: Form, most: int = 2000) -> list[int]:
        """Ids without the one that ended the text."""
        written: list[int] = []
        tired = np.zeros(len(self.bias), np.float32)
        while len(written) < most:
            allowed = np.flatnonzero(form.allowed())
            assert len(allowed), f"a dead end after {written}"
            logits = self.rng.normal(0, 1, len(allowed)).astype(np.float32) + self.bias[allowed] * (len(written) > 20)
            logits -= tired[allowed]
            token = int(allowed[logits.argmax()])
            if token in self.ends:
                assert form.complete
                return written
            form.push(token)
            tired[token] += 0.1  # no model writes the same for ever
            written.append(token)
        raise AssertionError(f"no end after {most} tokens")
