"""The words of the built-in model's domain: a kiosk or home box that answers in English.

Only lists and fixed facts live here; `text` makes sentences of them and `dialog` makes conversations.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


ROOMS = _words("kitchen,bedroom,bathroom,living room,hallway,garage,office,basement,garden,dining room,attic,lobby")
COLORS = _words("red,green,blue,yellow,orange,purple,white,black,pink,brown")
LIGHT_COLORS = _words("red,green,blue,yellow,orange,purple,white,pink,warm white,cool white")
GENRES = _words("jazz,rock,classical,pop,country,folk,dance,piano,blues,children")
ITEMS = _words(
    "milk,bread,eggs,butter,cheese,apples,bananas,tomatoes,potatoes,onions,rice,pasta,coffee,tea,sugar,salt,water,"
    "juice,chicken,fish,soap,paper towels,batteries,flour,honey,carrots,oranges,yogurt"
)
DRINKS = _words("coffee,tea,latte,hot chocolate,lemonade,orange juice,cappuccino,espresso")
SIZES = _words("small,medium,large")
CITIES = _words("london,paris,berlin,madrid,rome,boston,chicago,denver,seattle,tokyo,sydney,dublin,oslo,vienna")
DAYS = _words("monday,tuesday,wednesday,thursday,friday,saturday,sunday")
WHEN = ["today", "tomorrow", "tonight", "this weekend", *DAYS]
DOORS = _words("front door,back door,garage door,side door,gate,patio door,main entrance,window,skylight")
PLACES = _words(
    "restroom,elevator,exit,gift shop,cafe,information desk,ticket office,parking lot,first aid room,theater,library,"
    "cloakroom,playground,waiting room"
)
DEPARTMENTS = _words(
    "security,reception,maintenance,housekeeping,customer service,the manager,the nurse,technical support"
)
SENSORS = _words("temperature,humidity,air quality,water level,battery level,pressure,smoke level,noise level")
APPLIANCES = _words(
    "fan,heater,dishwasher,oven,washing machine,television,radio,vacuum,air conditioner,humidifier,coffee machine,"
    "sprinkler"
)
SHAPES = _words("circle,square,triangle,star,diamond,cross")
NAMES = "Anna Ben Clara David Emma Frank Grace Henry Ivy Jack Kate Leo Mary Noah Olga Paul".split()
WEATHER = _words("sunny,cloudy,rainy,windy,snowy,foggy")

# The kiosk's fixed facts: opening time, closing time, ticket price in dollars ("0" is free).
FACILITIES = {
    "museum": ("9 am", "5 pm", "12"),
    "library": ("8 am", "9 pm", "0"),
    "swimming pool": ("6 am", "10 pm", "7"),
    "gift shop": ("10 am", "6 pm", "0"),
    "cafe": ("7 am", "4 pm", "0"),
    "gym": ("5 am", "11 pm", "15"),
    "theater": ("2 pm", "11 pm", "25"),
    "aquarium": ("10 am", "7 pm", "18"),
    "zoo": ("9 am", "6 pm", "20"),
    "pharmacy": ("8 am", "8 pm", "0"),
    "post office": ("9 am", "4 pm", "0"),
    "visitor center": ("8 am", "5 pm", "0"),
}
LOCATIONS = {
    "restroom": "on the second floor",
    "elevator": "next to the lobby",
    "exit": "behind the stairs",
    "gift shop": "near the main entrance",
    "cafe": "on the ground floor",
    "information desk": "in the lobby",
    "ticket office": "near the main entrance",
    "parking lot": "behind the building",
    "first aid room": "next to the reception",
    "theater": "on the third floor",
    "library": "on the first floor",
    "cloakroom": "next to the ticket office",
    "playground": "in the garden",
    "waiting room": "on the second floor",
}
# Questions with one fixed answer: spoken form, written answer.
ABOUT = [
    ("what is your name", "I am Nano."),
    ("who are you", "I am Nano, a small assistant that runs on this device."),
    ("what can you do", "I can control the lights, answer questions and describe images."),
    ("do you need the internet", "No. I run on this device without the internet."),
    ("thank you", "You are welcome."),
    ("thank you very much", "You are welcome."),
    ("good morning", "Good morning. How can I help?"),
    ("good evening", "Good evening. How can I help?"),
    ("hello", "Hello. How can I help?"),
    ("hi there", "Hello. How can I help?"),
    ("goodbye", "Goodbye."),
    ("how are you", "I am fine, thank you."),
    ("is there free wifi", "Yes. The wifi is free for all guests."),
    ("can i pay by card", "Yes. We accept cards and cash."),
    ("are dogs allowed", "Only guide dogs are allowed."),
    ("is smoking allowed", "No. Smoking is not allowed in the building."),
    ("is the building accessible by wheelchair", "Yes. All floors are accessible by wheelchair."),
    ("can i take photos", "Yes, but please do not use the flash."),
    ("where can i leave my bag", "You can leave your bag at the cloakroom."),
    ("what should i do in case of fire", "Leave the building by the nearest exit and call security."),
    ("how many days are in a week", "There are 7 days in a week."),
    ("how many minutes are in an hour", "There are 60 minutes in an hour."),
    ("how many months are in a year", "There are 12 months in a year."),
]
ABOUT_ANSWERS = {answer for _, answer in ABOUT}
UNKNOWN_ANSWER = "I do not know that."
NO_TOOL_ANSWER = "Sorry, I can not do that here."

# What the model must say it does not know.
COUNTRIES = _words(
    "france,spain,italy,germany,norway,sweden,japan,china,india,brazil,canada,mexico,egypt,kenya,peru,chile,poland,"
    "greece,turkey,portugal,ireland,austria,finland,denmark,hungary,iceland,cuba,vietnam,korea,morocco"
)
PEOPLE = _words(
    "mozart,shakespeare,einstein,napoleon,cleopatra,newton,darwin,beethoven,picasso,columbus,lincoln,caesar,edison,"
    "tesla,galileo,bach,dickens,homer,plato,gandhi"
)
WORKS = _words(
    "hamlet,the odyssey,the bible,don quixote,the magic flute,the mona lisa,war and peace,the iliad,faust,carmen,"
    "the night watch,macbeth"
)
SCIENCE = _words(
    "gravity,an atom,photosynthesis,electricity,a black hole,inflation,democracy,a virus,chemistry,philosophy,algebra,"
    "a volcano,a molecule,the stock market,magnetism,evolution,a galaxy,an engine,a poem,a planet"
)
FAR_PLACES = _words(
    "airport,stadium,castle,hospital,cathedral,university,harbor,casino,embassy,circus,opera,bakery,brewery,observatory,"
    "planetarium,courthouse"
)

NOUNS = (
    "cat dog bird horse cow child teacher doctor driver farmer engineer woman man boy girl king queen river mountain "
    "house school market bridge train bus car boat plane bicycle table chair book letter phone computer camera key "
    "clock picture bottle basket box bag hat coat shoe flower tree forest island beach city village street road farm "
    "field lamp wall floor roof stone ball game song story movie question answer number name color morning evening "
    "summer winter rain snow wind sun moon star fire"
).split()
ADJECTIVES = (
    "old young small big happy sad quick slow bright dark cold warm quiet loud heavy light clean dirty strong weak "
    "early late empty full new broken simple strange beautiful famous friendly gentle hungry tired"
).split()
VERBS = (
    "sees finds takes brings carries buys sells opens closes likes loves watches follows helps meets paints builds "
    "breaks moves holds keeps leaves reads writes hears knows remembers forgets wants needs"
).split()
PREPOSITIONS = "near behind under over beside inside above below across with without before after around".split()
ADVERBS = (
    "quickly slowly quietly again today yesterday always never often sometimes together alone outside upstairs now "
    "later"
).split()
_GLUE = (
    "turn switch please can you set the light lights on off percent timer alarm minutes seconds degrees what where how "
    "when is are does open close play music volume up down call show find number text read ticket price much many "
    "start stop check tell me need want would like buy add list"
)
_LISTS = (
    ROOMS, LIGHT_COLORS, COLORS, GENRES, ITEMS, DRINKS, CITIES, WHEN, DOORS, PLACES, DEPARTMENTS, SENSORS, APPLIANCES,
    list(FACILITIES), COUNTRIES, PEOPLE, FAR_PLACES, [name.lower() for name in NAMES],
)  # fmt: skip
ALL_WORDS = sorted(
    {word for part in _LISTS for entry in part for word in entry.split()}
    | {*NOUNS, *ADJECTIVES, *VERBS, *PREPOSITIONS, *ADVERBS, *_GLUE.split()}
)

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(number: int) -> str:
    """`number` (0..999) in spoken English words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {spell(rest)}" if rest else "")


def spell_digits(digits: str) -> str:
    """Each digit of `digits` as a word: "407" is "four zero seven"."""
    return " ".join(_ONES[int(digit)] for digit in digits)
