"""The corpus: commands, questions, numbers and plain sentences in the proportions the model is trained on.

This module knows nothing of audio, images or chat turns: `speech` speaks the utterances, `dialog` wraps them in turns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

try:
    from . import lexicon as lx
    from .commands import COMMANDS
    from .utterance import Utterance, capitalise, make
except ImportError:  # run from inside the folder, as on a machine without the repository
    import lexicon as lx  # type: ignore[import-not-found, no-redef]
    from commands import COMMANDS  # type: ignore[import-not-found, no-redef]
    from utterance import Utterance, capitalise, make  # type: ignore[import-not-found, no-redef]

__all__ = ["COMMANDS", "Utterance", "capitalise", "corpus", "is_heldout"]


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
    return make(r.choice(templates).format(f=name), question=True, kind="faq", answer=answer)


def _location(r: random.Random) -> Utterance:
    place = r.choice(list(lx.LOCATIONS))
    template = r.choice(["where is the {p}", "where can i find the {p}", "i am looking for the {p}"])
    answer = f"The {place} is {lx.LOCATIONS[place]}."
    return make(template.format(p=place), question=template[0] == "w", kind="faq", answer=answer)


def _about(r: random.Random) -> Utterance:
    question, answer = r.choice(lx.ABOUT)
    asks = question.split()[0] in {"what", "who", "do", "how", "is", "can", "are", "where"}
    return make(question, question=asks, kind="faq", answer=answer)


def _faq(r: random.Random) -> Utterance:
    return r.choices([_facility, _location, _about], [5, 2, 2])[0](r)


def _math(r: random.Random) -> Utterance:
    a, b = r.randint(0, 20), r.randint(0, 20)
    plus = r.random() < 0.6
    if not plus:
        a, b = max(a, b), min(a, b)
    word, sign, result = ("plus", "+", a + b) if plus else ("minus", "-", a - b)
    template = r.choice(["what is {a} {w} {b}", "how much is {a} {w} {b}", "calculate {a} {w} {b}", "{a} {w} {b}"])
    return make(
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
    return make(spoken, question=asks, kind="unknown", answer=lx.UNKNOWN_ANSWER)


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
    return make(text, kind="general")


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
    return make(" ".join(spoken), " ".join(written), kind="salad")


def _digits(r: random.Random) -> Utterance:
    digits = "".join(r.choice("0123456789") for _ in range(r.randint(3, 6)))
    lead = r.choice(["my code is", "the room code is", "dial", "the number is", "enter code", "ticket number"])
    return make(f"{lead} {lx.spell_digits(digits)}", f"{lead} {digits}", kind="digits")


_KINDS: dict[str, tuple[float, Callable[[random.Random], Utterance]]] = {
    "cmd": (0.44, lambda r: r.choice(list(COMMANDS.values()))(r)),
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
