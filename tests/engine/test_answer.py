from __future__ import annotations

from edge_runtime.engine.answer import Answer
from tests.gemma import tiny

TOKENIZER = tiny.tokenizer()
ENDS = set(TOKENIZER.encode("<eos><turn|><|tool_response>"))


def run(text: str, *, stop: tuple[str, ...] = (), max_tokens: int = 1000) -> tuple[str, str, Answer]:
    answer = Answer(TOKENIZER, [], ends=ENDS, stop=stop, max_tokens=max_tokens)
    shown = ""
    for token in TOKENIZER.encode(text):
        shown += answer.push(token)
        if answer.done:
            break
    assert answer.done
    tail, reason = answer.finish()
    return shown + tail, reason, answer


def test_stops_at_an_end_token():
    text, reason, answer = run("abc<turn|>def")
    assert (text, reason, answer.tokens) == ("abc", "stop", 4)


def test_stops_at_a_string_inside_the_text():
    text, reason, answer = run("abcdef<turn|>", stop=("cd",))
    assert (text, reason, answer.tokens) == ("ab", "stop", 4)


def test_text_held_back_for_a_stop_string_is_given_at_the_end():
    assert run("abc<turn|>", stop=("cd",))[:2] == ("abc", "stop")
    assert run("abcx", stop=("cd",), max_tokens=3)[:2] == ("abc", "length")


def test_the_token_limit():
    assert run("abcdef", max_tokens=3)[:2] == ("abc", "length")


def test_an_end_token_at_the_limit_is_a_stop():
    assert run("abc<turn|>", max_tokens=4)[1] == "stop"


def test_a_character_cut_in_half_by_the_limit_is_dropped():
    assert run("a🙂", max_tokens=3)[:2] == ("a", "length")


def test_tool_calls():
    text, reason, answer = run("<|tool_call>call:f{}<tool_call|><|tool_response>")
    assert (text, reason) == ("", "tool_calls")
    assert answer.parser.tool_calls[0].name == "f"


def test_stop_strings_do_not_look_into_thoughts():
    text, reason, answer = run("<|channel>thought\nab<channel|>cab<turn|>", stop=("ab",))
    assert (text, reason, answer.parser.thoughts) == ("c", "stop", "ab")
