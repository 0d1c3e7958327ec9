"""What may come next: thoughts, forms and calls in one answer, played by a model that writes what it is told to."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.engine.answer import Answer
from edge_runtime.engine.choosing import Guide, chooser
from edge_runtime.engine.constrain import Forms
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from tests.gemma import tiny

TOKENIZER = tiny.tokenizer()
ENDS = set(TOKENIZER.encode("<eos><turn|><|tool_response>"))
FORMS = Forms(TOKENIZER, ENDS)
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


def answer(wishes: str, *, prompt: str = "", most: int = 200, **asked) -> tuple[str, Answer]:
    """What comes of a model that wishes to write `wishes`: at each step the next token of it that is allowed.

    Tokens that are not allowed are wished for in vain: the likeliest other one that is allowed comes.
    """
    request = Request(sampling=Sampling(0.0), **asked)
    ids = TOKENIZER.encode(prompt)
    chosen = chooser(request, {}, tokenizer=TOKENIZER, forms=FORMS, prompt=ids, ends=ENDS)
    collected = Answer(TOKENIZER, ids, ends=ENDS, stop=(), max_tokens=most)
    wanted = TOKENIZER.encode(wishes)
    shown = ""
    while not collected.done:
        logits = np.linspace(0, 1, TOKENIZER.size, dtype=np.float32)
        logits[list(ENDS)] += 2  # rather an end than anything that was not wished for
        if wanted:
            logits[wanted[0]] += 10
        token = chosen.pick(logits)
        wanted = wanted[1:]
        shown += collected.push(token)
    tail, _ = collected.finish()
    return shown + tail, collected


def test_without_wishes_everything_is_allowed():
    assert Guide(TOKENIZER, FORMS, Request(), [], ENDS).allowed(TOKENIZER.size) is None


def test_a_choice_is_kept_to():
    assert answer("yes<turn|>", choice=["yes", "no"])[0] == "yes"
    assert answer("maybe<turn|>", choice=["yes", "no"])[0] in {"yes", "no"}


def test_thoughts_are_free_and_the_answer_keeps_to_its_form():
    text, collected = answer("<|channel>thought\nmaybe it is so<channel|>no<turn|>", choice=["yes", "no"], think=True)
    assert (text, collected.parser.thoughts) == ("no", "maybe it is so")


def test_no_thoughts_unless_asked_for():
    text, collected = answer("<|channel>thought\nmaybe<channel|>no<turn|>", choice=["yes", "no"])
    assert text in {"yes", "no"}
    assert collected.parser.thoughts == ""


def test_a_thought_alone_is_no_answer():
    text, _ = answer("<|channel>thought\nhm<turn|>", choice=["yes"], think=True, most=30)
    assert "<" not in text
    guide = Guide(TOKENIZER, FORMS, Request(choice=["yes"], think=True), [], ENDS)
    guide.push(TOKENIZER.encode("<|channel>")[0])
    allowed = guide.allowed(TOKENIZER.size)
    assert allowed is not None
    assert not allowed[list(ENDS)].any()


def test_the_budget_closes_the_thought():
    text, collected = answer("<|channel>thought\nabcdefgh", think=True, thinking_budget=3, most=40)
    # The first line, `thought`, is some letters long for this tokenizer: what matters is that the thought ended.
    assert len(collected.parser.thoughts) < 8
    assert collected.parser._thought is None
    assert text or collected.tokens < 40


def test_a_budget_of_none_is_no_budget():
    _, collected = answer("<|channel>thought\nabcdefgh<channel|>yes<turn|>", think=True)
    assert collected.parser.thoughts == "abcdefgh"


def test_a_thought_that_the_template_opened():
    text, collected = answer("ab<channel|>no<turn|>", prompt="<|channel>thought\n", choice=["yes", "no"], think=True)
    assert (text, collected.parser.thoughts) == ("no", "ab")


def test_calls_keep_to_the_schemas_of_the_tools():
    _, collected = answer("<|tool_call>call:f{a:12}<tool_call|><|tool_response>", tools=[TOOL])
    assert [call.to_json() for call in collected.parser.tool_calls] == [{"name": "f", "arguments": {"a": 12}}]
    _, collected = answer("<|tool_call>call:g{b:12}<tool_call|><|tool_response>", tools=[TOOL], most=60)
    assert all(call.name == "f" and set(call.arguments) == {"a"} for call in collected.parser.tool_calls)


def test_several_calls():
    one, two = "<|tool_call>call:f{a:1}<tool_call|>", "<|tool_call>call:f{a:2}<tool_call|>"
    _, collected = answer(one + two + "<|tool_response>", tools=[TOOL])
    assert [call.arguments["a"] for call in collected.parser.tool_calls] == [1, 2]


def test_text_before_a_call():
    text, collected = answer("so be it<|tool_call>call:f{a:1}<tool_call|><|tool_response>", tools=[TOOL])
    assert (text, len(collected.parser.tool_calls)) == ("so be it", 1)


def test_a_call_may_take_the_place_of_a_form():
    _, collected = answer("<|tool_call>call:f{a:1}<tool_call|><|tool_response>", tools=[TOOL], choice=["yes"])
    assert len(collected.parser.tool_calls) == 1
    assert answer("yes<turn|>", tools=[TOOL], choice=["yes"])[0] == "yes"


def test_a_call_that_is_required_comes():
    text, collected = answer("no<turn|>", tools=[TOOL], tool_choice="required", most=60)
    assert text == ""
    assert collected.parser.tool_calls[0].name == "f"


def test_one_tool_of_several():
    tools = [TOOL, {**TOOL, "name": "g"}]
    wish = "<|tool_call>call:f{a:1}<tool_call|><|tool_response>"
    _, collected = answer(wish, tools=tools, tool_choice={"name": "g"}, most=60)
    assert {call.name for call in collected.parser.tool_calls} == {"g"}
    openai = {"type": "function", "function": {"name": "g"}}
    _, collected = answer(wish, tools=tools, tool_choice=openai, most=60)
    assert {call.name for call in collected.parser.tool_calls} == {"g"}


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"schema": {}, "regex": "a"}, "schema and regex were given"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"name": "h"}}, "no tool 'h'"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice is 'perhaps'"),
        ({"tools": [TOOL], "tool_choice": "required", "choice": ["a"]}, "cannot both"),
        ({"thinking_budget": -1}, "thinking_budget is -1"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
    ],
)
def test_what_is_not_right_is_said_at_once(asked, line):
    with pytest.raises(EdgeRuntimeError, match=line):
        chooser(Request(**asked), {}, tokenizer=TOKENIZER, forms=FORMS, prompt=[], ends=ENDS)


def test_logprobs_are_those_of_the_text_only():
    request = Request(sampling=Sampling(0.0), logprobs=True, top_logprobs=2, think=True)
    chosen = chooser(request, {}, tokenizer=TOKENIZER, forms=FORMS, prompt=[], ends=ENDS)
    for wish in TOKENIZER.encode("<|channel>thought\nab<channel|>ye<turn|>"):
        logits = np.zeros(TOKENIZER.size, np.float32)
        logits[wish] = 5
        assert chosen.pick(logits) == wish
    assert chosen.logprobs is not None
    assert [entry["token"] for entry in chosen.logprobs] == ["y", "e"]
    first = chosen.logprobs[0]
    assert first["bytes"] == [121]
    assert first["logprob"] == pytest.approx(5 - np.log(np.exp(5) + TOKENIZER.size - 1), abs=1e-5)
    assert first["top_logprobs"][0]["token"] == "y"
    assert len(first["top_logprobs"]) == 2


def test_a_bias_cannot_break_a_form():
    tokens = TOKENIZER.encode("y")
    request = Request(sampling=Sampling(0.0, logit_bias={tokens[0]: -100.0}), choice=["yes"])
    chosen = chooser(request, {}, tokenizer=TOKENIZER, forms=FORMS, prompt=[], ends=ENDS)
    assert chosen.pick(np.zeros(TOKENIZER.size, np.float32)) == tokens[0]
