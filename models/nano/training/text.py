"""Utterances: what a person says to the box, as it is spoken and as it is written, and what should come of it.

This module knows nothing of audio, images or chat turns: `speech` speaks the utterances, `dialog` wraps them in turns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

try:
    from . import lexicon as lx
except ImportError:  # run from inside the folder, as on a machine without the repository
    import lexicon as lx  # type: ignore[import-not-found, no-redef]

_PROPER = {*lx.CITIES, *lx.DAYS, *lx.COUNTRIES, *lx.PEOPLE, *(name.lower() for name in lx.NAMES)}


@dataclass(frozen=True)
class Utterance:
    """One thing a person says."""

    spoken: str
    """Lower-case words, letters and spaces only, as a synthesizer reads them."""
    written: str
    """The transcript: digits, capitals, full stop or question mark."""
    kind: str
    """cmd, faq, math, unknown, imgq, general, salad or digits."""
    tool: str | None = None
    """The tool a command calls."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """That call's arguments."""
    answer: str | None = None
    """The written answer of a question."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def capitalise(text: str) -> str:
    """Proper names and "I" with a capital."""
    return " ".join("I" if word == "i" else word.capitalize() if word in _PROPER else word for word in text.split())


def _make(spoken: str, written: str | None = None, *, question: bool = False, kind: str, **rest: Any) -> Utterance:
    text = capitalise(written or spoken)
    return Utterance(spoken, text[0].upper() + text[1:] + ("?" if question else "."), kind, **rest)


def _command(template: str, tool: str, arguments: dict[str, Any], **slots: tuple[str, str] | str) -> Utterance:
    """A command from `template`; a slot is one word for both forms, or (spoken, written)."""
    pairs = {key: (value, value) if isinstance(value, str) else value for key, value in slots.items()}
    spoken = template.format(**{key: value[0] for key, value in pairs.items()})
    written = template.format(**{key: value[1] for key, value in pairs.items()})
    question = template.split(maxsplit=1)[0] in {"can", "what", "will", "how", "do"}
    return _make(spoken, written, question=question, kind="cmd", tool=tool, arguments=arguments)


def _number(value: int) -> tuple[str, str]:
    return ("one hundred" if value == 100 else lx.spell(value)), str(value)


def _light(r: random.Random) -> Utterance:
    room, state, light = r.choice(lx.ROOMS), r.choice(["on", "off"]), r.choice(["light", "lights", "lamp"])
    template = r.choice(
        [
            "turn {s} the {r} {l}",
            "turn the {r} {l} {s}",
            "switch {s} the {r} {l}",
            "please turn {s} the {l} in the {r}",
            "can you switch the {r} {l} {s}",
            "{r} {l} {s} please",
        ]
    )
    return _command(template, "set_light", {"room": room, "state": state}, r=room, s=state, l=light)


def _brightness(r: random.Random) -> Utterance:
    room, percent = r.choice(lx.ROOMS), r.randrange(5, 101, 5)
    template = r.choice(
        [
            "dim the {r} light to {n} percent",
            "set the {r} light to {n} percent",
            "set the brightness in the {r} to {n} percent",
            "make the {r} lights {n} percent bright",
        ]
    )
    return _command(template, "set_brightness", {"percent": percent, "room": room}, r=room, n=_number(percent))


def _light_color(r: random.Random) -> Utterance:
    room, color = r.choice(lx.ROOMS), r.choice(lx.LIGHT_COLORS)
    template = r.choice(["change the {r} light to {c}", "make the {r} light {c}", "set the {r} lights to {c}"])
    return _command(template, "set_color", {"color": color, "room": room}, r=room, c=color)


def _thermostat(r: random.Random) -> Utterance:
    degrees = r.randint(10, 30)
    template = r.choice(
        [
            "set the thermostat to {n} degrees",
            "set the temperature to {n} degrees",
            "heat the house to {n} degrees",
            "change the thermostat to {n} degrees please",
            "i want it to be {n} degrees",
        ]
    )
    return _command(template, "set_thermostat", {"degrees": degrees}, n=_number(degrees))


def _timer(r: random.Random) -> Utterance:
    count, unit = r.randint(1, 60), r.choice(["minute", "minute", "second"])
    template = r.choice(
        [
            "set a timer for {n} {u}",
            "start a {n} {one} timer",
            "remind me in {n} {u}",
            "timer {n} {u}",
            "count down {n} {u}",
        ]
    )
    plural = unit if count == 1 else unit + "s"
    return _command(template, "set_timer", {unit + "s": count}, n=_number(count), u=plural, one=unit)


def _alarm(r: random.Random) -> Utterance:
    hour, minute, half = r.randint(1, 12), r.choice([0, 0, 30, *range(0, 60, 5)]), r.choice(["am", "pm"])
    minutes = "" if minute == 0 else " oh five" if minute == 5 else " " + lx.spell(minute)
    spoken = f"{lx.spell(hour)}{minutes} {half[0]} {half[1]}"
    written = f"{hour}:{minute:02d} {half}" if minute else f"{hour} {half}"
    day = r.choice(["", "", "tomorrow", *lx.DAYS])
    when = "" if not day else " tomorrow" if day == "tomorrow" else f" on {day}"
    arguments = {"time": f"{hour % 12 + (12 if half == 'pm' else 0):02d}:{minute:02d}"}
    if day:
        arguments["day"] = capitalise(day)
    template = r.choice(["set an alarm for {t}{d}", "wake me up at {t}{d}", "alarm at {t}{d} please"])
    return _command(template, "set_alarm", arguments, t=(spoken, written), d=when)


def _music(r: random.Random) -> Utterance:
    genre, room = r.choice(lx.GENRES), r.choice(lx.ROOMS)
    template = r.choice(
        [
            "play some {g} music",
            "play {g} music",
            "i would like to hear {g} music",
            "put on some {g} music",
        ]
    )
    arguments = {"genre": genre}
    if r.random() < 0.4:
        template += " in the {r}"
        arguments["room"] = room
    return _command(template, "play_music", arguments, g=genre, r=room)


def _door(r: random.Random) -> Utterance:
    door, action = r.choice(lx.DOORS), r.choice(["open", "close", "lock", "unlock"])
    template = r.choice(["{a} the {d}", "please {a} the {d}", "can you {a} the {d}", "{a} the {d} now"])
    return _command(template, "control_door", {"action": action, "door": door}, a=action, d=door)


def _shopping(r: random.Random) -> Utterance:
    item, count = r.choice(lx.ITEMS), r.randint(2, 12)
    template = r.choice(
        [
            "add {x} to the shopping list",
            "put {x} on my shopping list",
            "i need to buy {x}",
            "remember to buy {x}",
        ]
    )
    if r.random() < 0.5:
        return _command(template, "add_to_list", {"item": item}, x=item)
    slot = (f"{lx.spell(count)} {item}", f"{count} {item}")
    return _command(template, "add_to_list", {"item": item, "quantity": count}, x=slot)


def _weather(r: random.Random) -> Utterance:
    city, day = r.choice(lx.CITIES), r.choice(lx.WHEN)
    template = r.choice(
        [
            "what is the weather in {c} {w}",
            "will it rain in {c} {w}",
            "how is the weather in {c} {w}",
            "do i need an umbrella in {c} {w}",
        ]
    )
    when = f"on {day}" if day in lx.DAYS else day
    return _command(template, "get_weather", {"city": capitalise(city), "day": capitalise(day)}, c=city, w=when)


def _staff(r: random.Random) -> Utterance:
    department = r.choice(lx.DEPARTMENTS)
    template = r.choice(
        [
            "call {d}",
            "please call {d}",
            "i need to speak to {d}",
            "connect me to {d}",
            "can you call {d} for me",
        ]
    )
    return _command(template, "call_staff", {"department": department.replace("the ", "")}, d=department)


def _navigate(r: random.Random) -> Utterance:
    template = r.choice(
        ["take me to {p}", "show me the way to {p}", "how do i get to {p}", "give me directions to {p}"]
    )
    if r.random() < 0.5:
        place = r.choice(lx.PLACES)
        return _command(template, "navigate", {"place": place}, p=f"the {place}")
    kind = r.choice(["gate", "platform", "room", "floor", "table"])
    number = r.randint(1, 12 if kind == "floor" else 60)
    slot = (f"{kind} {lx.spell(number)}", f"{kind} {number}")
    return _command(template, "navigate", {"place": slot[1]}, p=slot)


def _order(r: random.Random) -> Utterance:
    count, size, drink = r.randint(1, 6), r.choice(lx.SIZES), r.choice(lx.DRINKS)
    template = r.choice(
        ["i would like {n} {s} {d}", "can i have {n} {s} {d}", "{n} {s} {d} please", "order {n} {s} {d}"]
    )
    number = ("a", "a") if count == 1 else _number(count)
    arguments = {"drink": drink, "quantity": count, "size": size}
    return _command(template, "order_drink", arguments, n=number, s=size, d=drink + ("s" if count > 1 else ""))


def _volume(r: random.Random) -> Utterance:
    level = r.randint(0, 10)
    if r.random() < 0.5:
        template = r.choice(["set the volume to {n}", "change the volume to {n}", "volume {n}"])
        return _command(template, "set_volume", {"level": level}, n=_number(level))
    change = r.choice(["up", "down"])
    template = r.choice(["turn the volume {c}", "turn {c} the volume", "volume {c} please"])
    return _command(template, "set_volume", {"change": change}, c=change)


def _sensor(r: random.Random) -> Utterance:
    sensor, room = r.choice(lx.SENSORS), r.choice(lx.ROOMS)
    template = r.choice(
        [
            "what is the {s} in the {r}",
            "check the {s} in the {r}",
            "tell me the {s} in the {r}",
            "read the {s} sensor in the {r}",
        ]
    )
    return _command(template, "read_sensor", {"room": room, "sensor": sensor}, s=sensor, r=room)


def _appliance(r: random.Random) -> Utterance:
    appliance, action = r.choice(lx.APPLIANCES), r.choice(["start", "stop"])
    template = r.choice(["{a} the {x}", "please {a} the {x}", "can you {a} the {x}"])
    return _command(template, "control_appliance", {"action": action, "appliance": appliance}, a=action, x=appliance)


COMMANDS: list[Callable[[random.Random], Utterance]] = [
    _light, _brightness, _light_color, _thermostat, _timer, _alarm, _music, _door, _shopping, _weather, _staff,
    _navigate, _order, _volume, _sensor, _appliance,
]  # fmt: skip


def _facility(r: random.Random) -> Utterance:
    name = r.choice(list(lx.FACILITIES))
    opens, closes, price = lx.FACILITIES[name]
    free = price == "0"
    templates, answer = r.choice(
        [
            (
                ["what time does the {f} open", "when does the {f} open", "when is the {f} open"],
                f"The {name} opens at {opens}.",
            ),
            (
                ["what time does the {f} close", "when does the {f} close", "until what time is the {f} open"],
                f"The {name} closes at {closes}.",
            ),
            (
                [
                    "how much is a ticket for the {f}",
                    "how much does the {f} cost",
                    "what is the entrance price of the {f}",
                ],
                f"The {name} is free." if free else f"A ticket for the {name} costs {price} dollars.",
            ),
        ]
    )
    return _make(r.choice(templates).format(f=name), question=True, kind="faq", answer=answer)


def _location(r: random.Random) -> Utterance:
    place = r.choice(list(lx.LOCATIONS))
    template = r.choice(["where is the {p}", "where can i find the {p}", "i am looking for the {p}"])
    answer = f"The {place} is {lx.LOCATIONS[place]}."
    return _make(template.format(p=place), question=template[0] == "w", kind="faq", answer=answer)


def _about(r: random.Random) -> Utterance:
    question, answer = r.choice(lx.ABOUT)
    asks = question.split()[0] in {"what", "who", "do", "how", "is", "can", "are", "where"}
    return _make(question, question=asks, kind="faq", answer=answer)


def _faq(r: random.Random) -> Utterance:
    return r.choices([_facility, _location, _about], [5, 2, 2])[0](r)


def _math(r: random.Random) -> Utterance:
    a, b = r.randint(0, 20), r.randint(0, 20)
    plus = r.random() < 0.6
    if not plus:
        a, b = max(a, b), min(a, b)
    word, sign, result = ("plus", "+", a + b) if plus else ("minus", "-", a - b)
    template = r.choice(["what is {a} {w} {b}", "how much is {a} {w} {b}", "calculate {a} {w} {b}", "{a} {w} {b}"])
    return _make(
        template.format(a=lx.spell(a), w=word, b=lx.spell(b)),
        template.format(a=a, w=sign, b=b),
        question=template[0] in "wh{",
        kind="math",
        answer=f"{a} {sign} {b} is {result}.",
    )


_UNKNOWN: list[tuple[str, dict[str, list[str]]]] = [
    ("what is the capital of {c}", {"c": lx.COUNTRIES}),
    ("how many people live in {c}", {"c": [*lx.COUNTRIES, *lx.CITIES]}),
    ("how far is it to {c}", {"c": [*lx.COUNTRIES, *lx.CITIES]}),
    ("who is the president of {c}", {"c": lx.COUNTRIES}),
    ("who was {p}", {"p": lx.PEOPLE}),
    ("when was {p} born", {"p": lx.PEOPLE}),
    ("tell me about {p}", {"p": [*lx.PEOPLE, *lx.COUNTRIES, *lx.SCIENCE]}),
    ("who wrote {w}", {"w": lx.WORKS}),
    ("explain {s} to me", {"s": lx.SCIENCE}),
    ("how does {s} work", {"s": lx.SCIENCE}),
    ("what is {s}", {"s": lx.SCIENCE}),
    ("what time does the {f} open", {"f": lx.FAR_PLACES}),
    ("when does the {f} close", {"f": lx.FAR_PLACES}),
    ("how much is a ticket for the {f}", {"f": lx.FAR_PLACES}),
    ("where is the {f}", {"f": lx.FAR_PLACES}),
    ("why is the {n} so {a}", {"n": lx.NOUNS, "a": lx.ADJECTIVES}),
    ("how old is the {n}", {"n": lx.NOUNS}),
    ("what does the {a} {n} want", {"n": lx.NOUNS, "a": lx.ADJECTIVES}),
    ("how do i build a {n}", {"n": lx.NOUNS}),
    ("who owns the {a} {n}", {"n": lx.NOUNS, "a": lx.ADJECTIVES}),
    ("write a poem about a {a} {n}", {"n": lx.NOUNS, "a": lx.ADJECTIVES}),
    ("which {n} is the best", {"n": lx.NOUNS}),
]


def _unknown(r: random.Random) -> Utterance:
    template, slots = r.choice(_UNKNOWN)
    spoken = template.format(**{key: r.choice(values) for key, values in slots.items()})
    asks = spoken.split()[0] not in {"tell", "explain", "write"}
    return _make(spoken, question=asks, kind="unknown", answer=lx.UNKNOWN_ANSWER)


def _image_question(r: random.Random) -> Utterance:
    try:
        from .images import QUESTION_GROUPS
    except ImportError:
        from images import QUESTION_GROUPS  # type: ignore[import-not-found, no-redef]
    written = r.choice(QUESTION_GROUPS[r.choice(list(QUESTION_GROUPS))])
    return Utterance(written.rstrip("?.").lower(), written, "imgq")


def _general(r: random.Random) -> Utterance:
    def phrase() -> str:
        article = r.choice(["the", "a", "this", "that", "my", "your", "our", "every"])
        adjective = r.choice(lx.ADJECTIVES) + " " if r.random() < 0.6 else ""
        return f"{article} {adjective}{r.choice(lx.NOUNS)}"

    text = f"{phrase()} {r.choice(lx.VERBS)} {phrase()}"
    if r.random() < 0.5:
        text += f" {r.choice(lx.PREPOSITIONS)} {phrase()}"
    if r.random() < 0.3:
        text += f" {r.choice(lx.ADVERBS)}"
    return _make(text, kind="general")


def _salad(r: random.Random) -> Utterance:
    """Words in no order: keeps the ear from leaning on the grammar alone."""
    spoken: list[str] = []
    written: list[str] = []
    for _ in range(r.randint(3, 8)):
        # Two numbers side by side would be ambiguous to write down.
        if r.random() < 0.15 and not (written and written[-1].isdigit()):
            number = r.randint(0, 999 if r.random() < 0.3 else 99)
            spoken.append(lx.spell(number))
            written.append(str(number))
        else:
            word = r.choice(lx.ALL_WORDS)
            spoken.append(word)
            written.append(word)
    return _make(" ".join(spoken), " ".join(written), kind="salad")


def _digits(r: random.Random) -> Utterance:
    digits = "".join(r.choice("0123456789") for _ in range(r.randint(3, 6)))
    lead = r.choice(["my code is", "the room code is", "dial", "the number is", "enter code", "ticket number"])
    return _make(f"{lead} {lx.spell_digits(digits)}", f"{lead} {digits}", kind="digits")


_KINDS: dict[str, tuple[float, Callable[[random.Random], Utterance]]] = {
    "cmd": (0.44, lambda r: r.choice(COMMANDS)(r)),
    "faq": (0.12, _faq),
    "math": (0.05, _math),
    "unknown": (0.07, _unknown),
    "imgq": (0.06, _image_question),
    "general": (0.10, _general),
    "salad": (0.10, _salad),
    "digits": (0.06, _digits),
}


def is_heldout(spoken: str) -> bool:
    """Whether a sentence belongs to the held-out twelfth: decided by its text, so no training run can see it."""
    return int(hashlib.md5(spoken.encode(), usedforsecurity=False).hexdigest(), 16) % 12 == 0


def corpus(seed: int, n: int, *, heldout: bool = False, kinds: tuple[str, ...] | None = None) -> list[Utterance]:
    """`n` utterances, reproducible from `seed`.

    Args:
        seed: Any integer.
        n: How many.
        heldout: True for sentences kept out of training. Closed sets (fixed small talk, image questions) belong to
            training only.
        kinds: Which kinds to draw; all of them, in the training proportions, when None.
    """
    r = random.Random(seed)
    names = list(kinds or _KINDS)
    weights = [_KINDS[name][0] for name in names]
    out: list[Utterance] = []
    while len(out) < n:
        utterance = _KINDS[r.choices(names, weights)[0]][1](r)
        closed = utterance.kind == "imgq" or utterance.answer in lx.ABOUT_ANSWERS
        if (closed and heldout) or (not closed and is_heldout(utterance.spoken) != heldout):
            continue
        out.append(utterance)
    return out
