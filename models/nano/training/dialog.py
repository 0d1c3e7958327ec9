"""Conversations in Gemma 4's turn format, as (prompt, answer) text pairs to train and to test on.

The text equals what the checkpoint's chat template renders; a test holds the two together. Media stand as their single
placeholder token, which the trainer expands to soft tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

try:
    from . import lexicon as lx
    from . import text as tx
except ImportError:  # run from inside the folder, as on a machine without the repository
    import lexicon as lx  # type: ignore[import-not-found, no-redef]
    import text as tx  # type: ignore[import-not-found, no-redef]

END_TURN = "<turn|>"
TOOL_RESPONSE = "<|tool_response>"
QUOTE = '<|"|>'
AUDIO, IMAGE = "<|audio|>", "<|image|>"

# The model card's prompt for speech recognition, and short forms people type.
ASR_PROMPT = (
    "Transcribe the following speech segment in English into English text.\n\n"
    "Follow these specific instructions for formatting the answer:\n"
    "*   Only output the transcription, with no newlines.\n"
    "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead of "
    "three."
)
ASR_SHORT = [
    "Transcribe the audio.",
    "Write down what is said.",
    "What is said in this recording?",
    "Transcribe this speech.",
]
SYSTEM_LINES = [
    "You are a helpful assistant.",
    "You are a kiosk in a museum.",
    "You are Nano, a small assistant.",
    "Answer briefly.",
    "You help the guests of this house.",
    "Be short and friendly.",
]


@dataclass(frozen=True)
class Tool:
    """A function the model may call: `parameters` maps a name to (JSON type, allowed values or None)."""

    description: str
    parameters: dict[str, tuple[str, tuple[str, ...] | None]]
    required: tuple[str, ...] = ()


def _tool(description: str, required: str, **parameters: str | tuple[str, tuple[str, ...]]) -> Tool:
    typed: dict[str, tuple[str, tuple[str, ...] | None]] = {
        key: (value, None) if isinstance(value, str) else value for key, value in parameters.items()
    }
    return Tool(description, typed, tuple(required.split()))


TOOLS = {
    "set_light": _tool("Switch a light", "room state", room="string", state=("string", ("on", "off"))),
    "set_brightness": _tool("Dim a light", "percent room", percent="integer", room="string"),
    "set_color": _tool("Set the color of a light", "color room", color="string", room="string"),
    "set_thermostat": _tool("Set the temperature", "degrees", degrees="integer"),
    "set_timer": _tool("Start a timer", "", minutes="integer", seconds="integer"),
    "set_alarm": _tool("Set an alarm", "time", day="string", time="string"),
    "play_music": _tool("Play music", "genre", genre="string", room="string"),
    "control_door": _tool("Move or lock a door", "action door", action="string", door="string"),
    "add_to_list": _tool("Add to the shopping list", "item", item="string", quantity="integer"),
    "get_weather": _tool("Get the weather", "city day", city="string", day="string"),
    "call_staff": _tool("Call the staff", "department", department="string"),
    "navigate": _tool("Show the way", "place", place="string"),
    "order_drink": _tool("Order a drink", "drink quantity size", drink="string", quantity="integer", size="string"),
    "set_volume": _tool("Set the volume", "", change="string", level="integer"),
    "read_sensor": _tool("Read a sensor", "room sensor", room="string", sensor="string"),
    "control_appliance": _tool("Start or stop an appliance", "action appliance", action="string", appliance="string"),
}


def tool_schema(name: str) -> dict[str, Any]:
    """The tool as the JSON schema that a client sends."""
    tool = TOOLS[name]
    properties: dict[str, Any] = {}
    for key, (kind, allowed) in tool.parameters.items():
        properties[key] = {"type": kind} | ({"enum": list(allowed)} if allowed else {})
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if tool.required:
        parameters["required"] = list(tool.required)
    return {
        "type": "function",
        "function": {"name": name, "description": tool.description, "parameters": parameters},
    }


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(entry) for entry in value) + "]"
    return str(value)


def _pairs(values: dict[str, Any]) -> str:
    return ",".join(f"{key}:{_value(values[key])}" for key in sorted(values))


def declaration(name: str) -> str:
    """The tool as it stands in the system turn."""
    tool = TOOLS[name]
    properties = []
    for key in sorted(tool.parameters):
        kind, allowed = tool.parameters[key]
        enum = f"enum:{_value(allowed)}," if allowed else ""
        properties.append(f"{key}:{{{enum}type:{QUOTE}{kind.upper()}{QUOTE}}}")
    required = f"required:{_value(tool.required)}," if tool.required else ""
    body = f"properties:{{{','.join(properties)}}},{required}type:{QUOTE}OBJECT{QUOTE}"
    return f"<|tool>declaration:{name}{{description:{QUOTE}{tool.description}{QUOTE},parameters:{{{body}}}}}<tool|>"


def call(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as the model writes it."""
    return f"<|tool_call>call:{name}{{{_pairs(arguments)}}}<tool_call|>"


def response(name: str, result: dict[str, Any]) -> str:
    """A tool's result as it is given back to the model."""
    return f"{TOOL_RESPONSE}response:{name}{{{_pairs(result)}}}<tool_response|>"


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to it, end token included, with what made them for a test to use."""

    prompt: str
    answer: str
    group: str
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[str, ...] = ()
    think: bool = False


def chat(
    messages: Sequence[dict[str, Any]],
    answer: str,
    group: str,
    *,
    tools: Sequence[str] = (),
    think: bool = False,
) -> Example:
    """Renders `messages` (system, user, assistant with plain text content) up to the open model turn."""
    turns = list(messages)
    prompt = "<bos>"
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    if system or tools or think:
        prompt += "<|turn>system\n" + ("<|think|>\n" if think else "") + system
        prompt += "".join(declaration(name) for name in tools) + f"{END_TURN}\n"
    for turn in turns:
        role = "model" if turn["role"] == "assistant" else turn["role"]
        prompt += f"<|turn>{role}\n{turn['content']}{END_TURN}\n"
    return Example(prompt + "<|turn>model\n", answer, group, tuple(messages), tuple(tools), think)


def ask(user: str, answer: str, group: str, *, system: str = "", **rest: Any) -> Example:
    """One user turn, with an optional system turn before it."""
    turns = [{"role": "user", "content": user}]
    return chat([{"role": "system", "content": system}, *turns] if system else turns, answer, group, **rest)


def pick_tools(r: random.Random, wanted: str | None, most: int = 4) -> list[str]:
    """1..`most` tools in random order, `wanted` among them when given."""
    others = [name for name in TOOLS if name != wanted]
    names = r.sample(others, r.randint(0 if wanted else 1, most - 1 if wanted else most))
    names += [wanted] if wanted else []
    r.shuffle(names)
    return names


def thought(utterance: tx.Utterance) -> str:
    """What the model thinks before it calls a tool, when thinking is on."""
    return f"<|channel>thought\nThe user says: {utterance.written} I should call {utterance.tool}.\n<channel|>"


def tool_example(r: random.Random, utterance: tx.Utterance, user: str) -> Example:
    """A command becomes a call; sometimes no declared tool fits and the model declines."""
    if r.random() < 0.1:
        tools = pick_tools(r, None)
        if utterance.tool not in tools:
            return ask(user, lx.NO_TOOL_ANSWER + END_TURN, "no_tool", tools=tools)
    return tool_call_example(r, utterance, user, think=r.random() < 0.1)


def tool_call_example(r: random.Random, utterance: tx.Utterance, user: str, *, think: bool = False) -> Example:
    """A command and the call it makes."""
    assert utterance.tool
    answer = (thought(utterance) if think else "") + call(utterance.tool, utterance.arguments) + TOOL_RESPONSE
    return ask(user, answer, "tool_think" if think else "tool", tools=pick_tools(r, utterance.tool), think=think)


def response_example(r: random.Random) -> Example:
    """A tool's result becomes a sentence."""
    name = r.choice(["get_weather", "read_sensor", "set_light", "set_timer", "set_thermostat"])
    utterance = tx.COMMANDS[name](r)
    arguments = utterance.arguments
    if name == "get_weather":
        sky, degrees = r.choice(lx.WEATHER), r.randint(0, 35)
        result: dict[str, Any] = {"sky": sky, "temperature": degrees}
        answer = f"It will be {sky} in {arguments['city']} with {degrees} degrees."
    elif name == "read_sensor":
        value = r.randint(0, 100)
        result = {"value": value}
        answer = f"The {arguments['sensor']} in the {arguments['room']} is {value}."
    else:
        done = r.random() < 0.8
        result = {"status": "ok" if done else "error"}
        answer = (
            {
                "set_light": f"The {arguments.get('room')} light is {arguments.get('state')}.",
                "set_timer": "The timer is running.",
                "set_thermostat": f"The thermostat is set to {arguments.get('degrees')} degrees.",
            }[name]
            if done
            else "Sorry, that did not work."
        )
    tools = pick_tools(r, name)
    opened = ask(utterance.written, "", "", tools=tools)
    turns = (
        *opened.messages,
        {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]},
        {"role": "tool", "name": name, "content": result},
    )
    prompt = opened.prompt + call(name, arguments) + response(name, result)
    return Example(prompt, answer + END_TURN, "tool_result", turns, tuple(tools))


def _fact_kinds(r: random.Random) -> tuple[list[str], list[str], Callable[[str, str], str], Callable[[str], list[str]]]:
    """(subjects, values, statement(subject, value), questions(subject)) of one kind of fact."""
    kind = r.randrange(5)
    if kind == 0:
        values = [str(n) for n in r.sample(range(1, 100), 8)]
        return (
            lx.NAMES,
            values,
            lambda s, v: f"{s} is in room {v}.",
            lambda s: [
                f"Where is {s}?",
                f"Which room is {s} in?",
            ],
        )
    if kind == 1:
        values = ["".join(r.choice("0123456789") for _ in range(4)) for _ in range(8)]
        return lx.NAMES, values, lambda s, v: f"The code of {s} is {v}.", lambda s: [f"What is the code of {s}?"]
    if kind == 2:
        values = [f"{hour} {half}" for hour in r.sample(range(1, 13), 4) for half in ("am", "pm")]
        places = [*lx.FACILITIES, *lx.FAR_PLACES]
        return (
            places,
            values,
            lambda s, v: f"The {s} opens at {v}.",
            lambda s: [f"What time does the {s} open?", f"When does the {s} open?"],
        )
    if kind == 3:
        values = [tx.capitalise(c) for c in r.sample(lx.CITIES, 8)]
        return lx.NAMES, values, lambda s, v: f"{s} lives in {v}.", lambda s: [f"Where does {s} live?"]
    values = [str(n) for n in r.sample(range(1, 100), 8)]
    return (
        lx.ITEMS,
        values,
        lambda s, v: f"The price of {s} is {v} dollars.",
        lambda s: [f"What is the price of {s}?", f"How much is the {s}?"],
    )


def fact_example(r: random.Random) -> Example:
    """A fact from the system turn, or from an earlier user turn; or one that was never given."""
    subjects, values, statement, questions = _fact_kinds(r)
    count = r.randint(1, 4)
    chosen = r.sample(subjects, count + 1)
    facts = dict(zip(chosen[:count], values, strict=False))
    missing = r.random() < 0.12
    subject = chosen[count] if missing else r.choice(chosen[:count])
    answer = lx.UNKNOWN_ANSWER if missing else statement(subject, facts[subject])
    stated = " ".join(statement(s, v) for s, v in facts.items())
    if r.random() < 0.3:
        stated = f"{r.choice(SYSTEM_LINES)} {stated}"
    question = r.choice(questions(subject))
    group = "fact_missing" if missing else "fact"
    if r.random() < 0.75:
        return ask(question, answer + END_TURN, group, system=stated)
    turns = [
        {"role": "user", "content": stated},
        {"role": "assistant", "content": "Thank you. I will remember that."},
        {"role": "user", "content": question},
    ]
    return chat(turns, answer + END_TURN, group)


def acknowledge_example(r: random.Random) -> Example:
    """Told facts, the model says it will remember them."""
    subjects, values, statement, _ = _fact_kinds(r)
    facts = zip(r.sample(subjects, r.randint(1, 4)), values, strict=False)
    stated = " ".join(statement(s, v) for s, v in facts)
    return ask(stated, "Thank you. I will remember that." + END_TURN, "acknowledge")


def history_example(r: random.Random, utterances: Sequence[tx.Utterance]) -> Example:
    """The last of several questions; the earlier ones stand answered in the history."""
    turns: list[dict[str, Any]] = []
    if r.random() < 0.3:
        turns.append({"role": "system", "content": r.choice(SYSTEM_LINES)})
    for utterance in utterances:
        turns.append({"role": "user", "content": utterance.written})
        turns.append({"role": "assistant", "content": utterance.answer})
    return chat(turns[:-1], str(turns[-1]["content"]) + END_TURN, "history")


def answer_example(r: random.Random, utterance: tx.Utterance, user: str) -> Example:
    """A question and its answer, sometimes beside tools or a system line that have nothing to do with it."""
    tools = pick_tools(r, None) if r.random() < 0.15 else []
    system = r.choice(SYSTEM_LINES) if r.random() < 0.2 else ""
    return ask(user, f"{utterance.answer}{END_TURN}", utterance.kind, system=system, tools=tools)


def text_example(r: random.Random, pool: Sequence[tx.Utterance], answered: Sequence[tx.Utterance]) -> Example:
    """One typed example. `pool`: any utterances; `answered`: those with an answer."""
    shares = {"tool": 28, "answer": 26, "fact": 24, "result": 9, "history": 8, "repeat": 3, "acknowledge": 2}
    kind = r.choices(list(shares), list(shares.values()))[0]
    if kind == "fact":
        return fact_example(r)
    if kind == "result":
        return response_example(r)
    if kind == "history":
        return history_example(r, r.sample(answered, r.randint(2, 4)))
    if kind == "acknowledge":
        return acknowledge_example(r)
    if kind == "answer":
        utterance = r.choice(answered)
        return answer_example(r, utterance, utterance.written)
    utterance = r.choice(pool)
    if kind == "tool" and utterance.tool:
        return tool_example(r, utterance, utterance.written)
    return ask(f"Repeat: {utterance.written}", utterance.written + END_TURN, "repeat")


def speech_example(r: random.Random, utterance: tx.Utterance) -> Example:
    """One spoken example: a transcript, a call, or an answer to the question asked."""
    if utterance.tool and r.random() < 0.4:
        return tool_example(r, utterance, AUDIO)
    if utterance.answer and r.random() < 0.5:
        return answer_example(r, utterance, AUDIO)
    prompt = ASR_PROMPT if r.random() < 0.65 else r.choice(ASR_SHORT)
    user = AUDIO + prompt if r.random() < 0.8 else prompt + AUDIO
    return ask(user, utterance.written + END_TURN, "asr")
