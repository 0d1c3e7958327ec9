from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest

from edge_runtime.engine.constrain import Forms
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.schemas import Writer, schema
from tests.gemma import tiny

TOKENIZER = tiny.tokenizer()
ENDS = set(TOKENIZER.encode("<eos><turn|>"))
FORMS = Forms(TOKENIZER, ENDS)


def written(form, seed: int = 1) -> str:
    return TOKENIZER.decode(Writer(TOKENIZER, ENDS, seed).write(form), skip_special=False)


def check(count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        wanted = schema(random.Random(seed))
        text = written(FORMS.schema(wanted), seed)
        try:
            jsonschema.Draft202012Validator(wanted).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            raise AssertionError(f"schema {seed}: {wanted} gave {text!r}") from error


def test_random_schemas_are_kept_to_by_a_model_that_knows_nothing():
    check(300)


@pytest.mark.slow
def test_ten_thousand_random_schemas():
    check(10_000, 300)


def test_json_is_written_as_python_does():
    form = FORMS.schema({"const": {"a": [1, 2], "b": None}})
    assert written(form) == '{"a": [1, 2], "b": null}'


def test_regex_matches_the_whole():
    for seed in range(20):
        assert re.fullmatch(
            r"[0-9]{2}:[0-9]{2}|(at )?noon", written(FORMS.regex(r"[0-9]{2}:[0-9]{2}|(at )?noon"), seed)
        )


def test_choices_with_any_characters():
    choices = ["yes", 'no "never"', "a\\b", "zwölf\n🙂", "<turn|>"]
    assert {written(FORMS.choice(choices), seed) for seed in range(60)} == set(choices)


def test_a_text_ends_only_where_it_is_complete():
    form = FORMS.choice(["ab", "abc"])
    for token in TOKENIZER.encode("a"):
        form.push(token)
    assert not form.allowed()[list(ENDS)].any()
    for token in TOKENIZER.encode("b"):
        form.push(token)
    assert form.complete
    assert form.allowed()[list(ENDS)].all()


def test_control_tokens_are_never_part_of_a_text():
    form = FORMS.schema({"type": "string"})
    for token in TOKENIZER.encode('"'):
        form.push(token)
    allowed = form.allowed()
    assert not any(allowed[token] for token in range(TOKENIZER.size) if TOKENIZER.is_special(token))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: FORMS.schema({"type": "nonsense"}), "the schema cannot be held to"),
        (lambda: FORMS.schema({"$ref": "#/$defs/none"}), "the schema cannot be held to"),
        (lambda: FORMS.schema({"type": "object", "x": object()}), "the schema is not JSON"),
        (lambda: FORMS.schema({"not": {"type": "string"}}), "the schema cannot be held to"),
        (lambda: FORMS.regex("["), "the regex cannot be held to"),
        (lambda: FORMS.regex("(a)\\1"), "the regex cannot be held to"),
        (lambda: FORMS.regex(""), "regex must be"),
        (lambda: FORMS.choice([]), "choice must be"),
        (lambda: FORMS.choice(["a", ""]), "choice must be"),
        (lambda: FORMS.choice("yes"), "choice must be"),
    ],
)
def test_what_cannot_be_held_to_is_said_in_one_line(make, line):
    with pytest.raises(EdgeRuntimeError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_token_that_is_not_allowed_is_an_error():
    form = FORMS.choice(["ab"])
    with pytest.raises(EdgeRuntimeError, match="form cannot be kept to"):
        form.push(TOKENIZER.encode("x")[0])
