"""What the generated pictures are about: class ids, words on signs, questions and answers.

Nothing here draws. Questions are letters and spaces only (before the last mark), so that they can be spoken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


def _words(text: str) -> list[str]:
    return text.split()


CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ:$"
"""Characters that pictures show to be read; the class of a character is its index + 1, 0 is none."""
SHAPES = ["circle", "square", "triangle", "star", "diamond", "cross"]
"""The class of a shape is its index + 1, 0 is none."""
PALETTE = {
    "red": (214, 24, 32),
    "green": (30, 150, 55),
    "blue": (35, 75, 215),
    "yellow": (252, 230, 36),
    "orange": (248, 118, 8),
    "purple": (118, 40, 168),
    "white": (250, 250, 250),
    "black": (16, 16, 16),
    "pink": (255, 132, 190),
    "brown": (112, 66, 30),
}
COLORS = list(PALETTE)
"""The class of a colour is its index + 1, 0 is none."""
PARTS = [
    "dial face", "dial needle", "dial tip", "dial hub", "tank empty", "tank fill", "door closed", "door opening",
    "door leaf", "window closed", "window opening", "window leaf", "lamp on", "lamp off", "rays",
]  # fmt: skip
"""The class of a part is its index + 1, 0 is none."""

SIGN_WORDS = _words("""
EXIT OPEN CLOSED STOP PUSH PULL SALE CAFE HOTEL TAXI BUS TICKETS LIBRARY MUSEUM TOILET DANGER WARNING FREE FULL WELCOME
ENTRANCE PARKING POLICE BANK SCHOOL MARKET PIZZA COFFEE WATER FIRE LIFT GATE ROOM STAFF PRIVATE QUIET NORTH SOUTH EAST
WEST LEFT RIGHT UP DOWN ON OFF HOT COLD SLOW FAST KITCHEN BEDROOM BATHROOM GARAGE OFFICE BASEMENT GARDEN ATTIC LOBBY
HALLWAY ELEVATOR THEATER RECEPTION SECURITY CLOAKROOM RESTROOM PHARMACY GYM ZOO AQUARIUM SHOP POOL PAY CASH CARD MENU
HELP INFO START CANCEL NEXT BACK TEA MILK BREAD JUICE LUNCH DINNER BUSY READY WAIT PRESS RING DOOR WINDOW STAIRS FLOOR
PLATFORM TRAIN BOOKS MUSIC PHONE RADIO LIGHT KEYS SOLD NEW TODAY MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY
SUNDAY
""")
NUMBERED = ["ROOM", "GATE", "FLOOR", "BUS", "EXIT", "LIFT"]
"""Words that stand before a number, as in ROOM 12."""
PHRASES = [
    "NO ENTRY",
    "WAY OUT",
    "KEEP LEFT",
    "KEEP RIGHT",
    "SOLD OUT",
    "PAY HERE",
    "WET FLOOR",
    "GIFT SHOP",
    "PRESS HERE",
]

COUNT_COLOR_SHAPE = ["How many {color} {shapes} are there?", "How many {color} {shapes} do you see?"]
COUNT_SHAPE = ["How many {shapes} are there?", "How many {shapes} do you see?", "Count the {shapes}."]
COUNT_COLOR = ["How many {color} shapes are there?", "How many {color} shapes do you see?"]
COUNT_ALL = ["How many shapes are there?", "How many shapes do you see?", "Count the shapes."]
EXISTS_COLOR_SHAPE = ["Is there {a} {color} {shape}?", "Do you see {a} {color} {shape}?"]
EXISTS_SHAPE = ["Is there a {shape}?", "Do you see a {shape}?"]
COLOR_OF = ["What color is the {shape}?", "Which color is the {shape}?"]
COLOR_ONLY = ["What color is it?", "Which color is it?", "What color is the shape?"]
SHAPE_ONLY = ["What shape is it?", "Which shape is it?", "What shape do you see?"]
SHAPE_OF = ["What shape is {color}?", "Which shape is {color}?"]
WHERE_SHAPE = ["Where is the {shape}?"]
WHERE_COLOR_SHAPE = ["Where is the {color} {shape}?"]
TEXT = ["What does the sign say?", "Read the text.", "What is written here?", "Read the sign."]
WORD = ["Which word is on the sign?", "What word is on the sign?"]
NUMBER = ["What number is on the display?", "Read the number.", "Which number do you see?", "Read the display."]
PRICE = ["What is the price?", "Read the price.", "How much does it cost?"]
TIME = ["What time does the clock show?", "What time is on the display?", "Read the clock."]
DIAL = ["What does the gauge read?", "What value does the gauge show?", "Read the gauge.", "What does the dial show?"]
TANK = ["How full is the tank?", "What is the level of the tank?", "What is the tank level?"]
EITHER = {
    "door": "Is the door open or closed?",
    "window": "Is the window open or closed?",
    "lamp": "Is the lamp on or off?",
}
IS_STATE = ["Is the {thing} {state}?"]
STATES = {"door": ("open", "closed"), "window": ("open", "closed"), "lamp": ("on", "off")}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
POSITIONS = [
    "Center." if (row, column) == ("middle", "center") else f"{row} {column}.".capitalize()
    for row in _ROWS
    for column in _COLUMNS
]
"""Answers to where something is, row by row."""


def plural(shape: str) -> str:
    """Two of them: crosses, circles."""
    return shape + ("es" if shape.endswith("s") else "s")


def article(word: str) -> str:
    """A or an before the word."""
    return "an" if word[0] in "aeiou" else "a"


def fill(template: str, color: str = "red", shape: str = "circle") -> str:
    """A question from its template."""
    return template.format(color=color, shape=shape, shapes=plural(shape), a=article(color))


def ask(rng: random.Random, templates: list[str], color: str = "red", shape: str = "circle") -> str:
    """One of the phrasings, filled."""
    return fill(rng.choice(templates), color, shape)


def sentence(word: str) -> str:
    """The word as a whole answer: "Red."."""
    return word.capitalize() + "."


def _combinations(templates: list[str]) -> list[str]:
    filled = (fill(template, color, shape) for template in templates for color in COLORS for shape in SHAPES)
    return list(dict.fromkeys(filled))


QUESTION_GROUPS: dict[str, list[str]] = {
    "count": _combinations(COUNT_COLOR_SHAPE + COUNT_SHAPE + COUNT_COLOR + COUNT_ALL),
    "exists": _combinations(EXISTS_COLOR_SHAPE + EXISTS_SHAPE),
    "color": _combinations(COLOR_OF + COLOR_ONLY),
    "shape": _combinations(SHAPE_ONLY + SHAPE_OF),
    "position": _combinations(WHERE_SHAPE + WHERE_COLOR_SHAPE),
    "word": TEXT + WORD,
    "digits": NUMBER + PRICE + TIME,
    "dial": list(DIAL),
    "tank": list(TANK),
} | {
    thing: [EITHER[thing], *(IS_STATE[0].format(thing=thing, state=state) for state in states)]
    for thing, states in STATES.items()
}
"""Every phrasing that can occur, by group. Draw a group first: the combinations of count outnumber the rest."""
QUESTIONS: list[str] = [question for group in QUESTION_GROUPS.values() for question in group]
"""Every phrasing that can occur."""
