"""Commands: sentences that call a tool, with the call they make."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

try:
    from . import lexicon as lx
    from .utterance import Utterance, capitalise, make
except ImportError:  # run from inside the folder, as on a machine without the repository
    import lexicon as lx  # type: ignore[import-not-found, no-redef]
    from utterance import Utterance, capitalise, make  # type: ignore[import-not-found, no-redef]


def _command(template: str, tool: str, arguments: dict[str, Any], **slots: tuple[str, str] | str) -> Utterance:
    """A command from `template`; a slot is one word for both forms, or (spoken, written)."""
    pairs = {key: (value, value) if isinstance(value, str) else value for key, value in slots.items()}
    spoken = template.format(**{key: value[0] for key, value in pairs.items()})
    written = template.format(**{key: value[1] for key, value in pairs.items()})
    question = template.split(maxsplit=1)[0] in {"can", "what", "will", "how", "do"}
    return make(spoken, written, question=question, kind="cmd", tool=tool, arguments=arguments)


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


COMMANDS: dict[str, Callable[[random.Random], Utterance]] = {
    "set_light": _light,
    "set_brightness": _brightness,
    "set_color": _light_color,
    "set_thermostat": _thermostat,
    "set_timer": _timer,
    "set_alarm": _alarm,
    "play_music": _music,
    "control_door": _door,
    "add_to_list": _shopping,
    "get_weather": _weather,
    "call_staff": _staff,
    "navigate": _navigate,
    "order_drink": _order,
    "set_volume": _volume,
    "read_sensor": _sensor,
    "control_appliance": _appliance,
}
"""What makes a command, by the tool it calls."""
