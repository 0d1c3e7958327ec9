from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.gemma.output import OutputParser
from tests.gemma import tiny

TOKENIZER = tiny.tokenizer()


def run(text: str, prompt: str = "") -> tuple[list[str], OutputParser]:
    parser = OutputParser(TOKENIZER, TOKENIZER.encode(prompt))
    pieces = [parser.push(token) for token in TOKENIZER.encode(text)]
    parser.finish()
    return pieces, parser


def test_plain_text_streams():
    pieces, parser = run("the é!")
    assert "".join(pieces) == "the é!"
    assert parser.thoughts == ""
    assert parser.tool_calls == []


def test_thoughts_stay_apart():
    pieces, parser = run("<|channel>thought\nhmm é\nyes<channel|>Sure.<turn|>")
    assert "".join(pieces) == "Sure."
    assert parser.thoughts == "hmm é\nyes"


def test_an_empty_thought_leaves_nothing():
    pieces, parser = run("<|channel>thought\n<channel|>Sure.")
    assert ("".join(pieces), parser.thoughts) == ("Sure.", "")


def test_a_channel_opened_by_the_template():
    pieces, parser = run("hmm<channel|>Sure.", prompt="<|turn>model\n<|channel>")
    assert ("".join(pieces), parser.thoughts) == ("Sure.", "hmm")
    pieces, parser = run("Sure.", prompt="<|channel>thought\n<channel|>")
    assert ("".join(pieces), parser.thoughts) == ("Sure.", "")


def test_a_thought_cut_off_is_still_a_thought():
    pieces, parser = run("<|channel>thought\nhmm")
    assert ("".join(pieces), parser.thoughts) == ("", "hmm")


def test_a_channel_that_is_no_thought_is_text():
    pieces, parser = run("<|channel>final\nYes<channel|>.")
    assert ("".join(pieces), parser.thoughts) == ("Yes.", "")


def test_several_thoughts():
    _, parser = run("<|channel>thought\na<channel|>x<|channel>thought\nb<channel|>")
    assert parser.thoughts == "a\nb"


def test_calls_stay_apart():
    pieces, parser = run(
        'Ok.<|tool_call>call:f{a:<|"|>x{},:]é<|"|>,b:[1,<|"|>z<|"|>]}<tool_call|><|tool_call>call:g{}<tool_call|><|tool_response>'
    )
    assert "".join(pieces) == "Ok."
    assert [call.to_json() for call in parser.tool_calls] == [
        {"name": "f", "arguments": {"a": "x{},:]é", "b": [1, "z"]}},
        {"name": "g", "arguments": {}},
    ]


def test_a_call_after_a_thought_that_was_never_closed():
    pieces, parser = run("<|channel>thought\nhmm<|tool_call>call:f{}<tool_call|>")
    assert "".join(pieces) == ""
    assert parser.thoughts == "hmm"
    assert parser.tool_calls[0].name == "f"


def test_a_call_that_cannot_be_read_is_text_without_markers():
    pieces, parser = run('<|tool_call>call f<|"|>x<|"|><tool_call|>')
    assert ("".join(pieces), parser.tool_calls) == ('call f"x"', [])


def test_a_call_cut_off_is_dropped():
    pieces, parser = run('<|tool_call>call:f{a:<|"|>x')
    assert ("".join(pieces), parser.tool_calls) == ("", [])


@pytest.mark.parametrize("control", tiny.CONTROLS)
def test_no_control_token_leaks(control):
    pieces, _ = run(f"a{control}b{control}c")
    assert control not in "".join(pieces)


@given(st.lists(st.sampled_from([*tiny.CONTROLS, "a", "é", "thought\n", "call:f{", "}"])))
def test_no_order_of_tokens_breaks_it(parts):
    pieces, parser = run("".join(parts))
    shown = "".join(pieces) + parser.thoughts
    assert not any(control in shown for control in tiny.CONTROLS if "|" in control)
