"""How facts and questions are worded: what a reader is taught with, and, in other words, what it is asked with.

A reader that was taught with ten wordings answers these, and loses one in ten questions in others. So it is taught with
some hundred: each way to say a fact, with each thing that a fact may be about.
"""

from __future__ import annotations

THINGS = (
    "access code", "serial", "locker", "phone extension", "house number", "ticket", "account", "price", "weight",
    "room", "badge", "order number", "seat", "docket", "parcel number", "gate",
)  # fmt: skip
# (what is hidden, what is asked), of a thing {a}
_ABOUT = (
    ("The {a} of {k} is {v}.", "What is the {a} of {k}? The {a} of {k} is"),
    ("{k} has the {a} {v}.", "Which {a} does {k} have? {k} has the {a}"),
    ("Given {a} for {k}: {v}.", "Give the {a} for {k}. The {a} for {k} is"),
    ("Remember, for {k} the {a} is {v}.", "Question: what is the {a} for {k}? Answer:"),
    ("It is known that {v} is the {a} of {k}.", "According to the text, which {a} has {k}? The {a} of {k} is"),
    ("({k}) {a} -> {v}", "Complete the line: ({k}) {a} ->"),
    ("A clerk wrote down {v} as {a} for {k}.", "Which {a} did a clerk write down for {k}? For {k} a clerk wrote down"),
    ("For {k} the {a} reads {v}; keep it.", "Tell me the {a} of {k} that the passage names. This {a} of {k} reads:"),
    ("{v} was given to {k} as {a}.", "What was given to {k} as {a}? As {a}, {k} was given"),
    ("{k}: {a} {v}. Do not lose it.", "In the passage above, {k} has a certain {a}. Which one? The {a} of {k} is:"),
)
# of single values
TAUGHT = (
    *((line.replace("{a}", thing), asked.replace("{a}", thing)) for line, asked in _ABOUT for thing in THINGS),
    ("{k} was stored under number {v}.", "Under which number was {k} stored? {k} was stored under number"),
    ("{k} lives at house {v}.", "At which house does {k} live? {k} lives at house"),
    ("Record of {k}: {v}.", "Give the record of {k}. The record of {k} is"),
    ("Remember that {k} equals {v}.", "What does {k} equal? In the text above, {k} equals"),
    ("They paid {v} crowns for {k}.", "How many crowns were paid for {k}? The crowns paid for {k} were"),
    ("For {k} the secret figure is: {v}.", "Tell me the secret figure for {k}. The secret figure for {k} is:"),
    ("Someone wrote: {k} -> {v}.", "Complete: {k} ->"),
)
NUMBER = (
    "One of the special magic numbers for {k} is: {v}.",
    "What is the special magic number for {k} mentioned in the provided text? "
    "The special magic number for {k} mentioned in the provided text is:",
)
PASS_KEY = (
    "The pass key of {k} is {v}. Remember it. {v} is the pass key of {k}.",
    "What is the pass key of {k}? The pass key of {k} is",
)
_SEVERAL = (
    ("A known {a} of {k}: {v}.", "Name the {n} {a}s of {k} in their order. The {n} {a}s of {k} are"),
    ("{k} also has {a} {v}.", "Which {n} {a}s does {k} have? {k} has"),
    ("Found {a} for {k}: {v}.", "List all {a}s for {k} found in the passage. All {n} {a}s for {k}:"),
    ("Somebody noted {v} as {a} of {k}.", "Question: what are the {n} {a}s of {k}? Answer: the {n} {a}s are"),
)
TAUGHT_VALUES = (
    *((line.replace("{a}", thing), asked.replace("{a}", thing)) for line, asked in _SEVERAL for thing in THINGS),
    ("{k} was seen in year {v}.", "In which {n} years was {k} seen? {k} was seen in"),
    ("A page about {k}: {v}.", "List the {n} pages about {k}. The pages about {k} are"),
)
ASKED_VALUES = (
    "One of the special magic numbers for {k} is: {v}.",
    "What are all the special magic numbers for {k} mentioned in the provided text? "
    "The {n} special magic numbers for {k} mentioned in the provided text are:",
)
# (first link, further link, what is asked), of chains
TAUGHT_CHAINS = (
    ("Set {a} to {v}.", "Copy {a} into {b}.", "Which names hold {v}? {n} names hold {v}, they are:"),
    ("{a} := {v};", "{b} := {a};", "Which names in the passage hold {v}? {n} names hold {v}, they are:"),
    ("Let {a} be {v}.", "Let {b} be the same as {a}.", "Name all that are {v}. {n} names are {v}, they are:"),
    ("Box {a} holds {v}.", "Box {b} holds what box {a} holds.", "Which {n} boxes hold {v}? They are:"),
    ("The value of {a} is {v}.", "The value of {b} is that of {a}.", "Find all whose value is {v}. {n} have it:"),
    ("let {a} <- {v}", "let {b} <- {a}", "Question: find all that were given {v}. Answer: {n} were given {v}:"),
    ("{a} weighs {v}.", "{b} weighs as much as {a}.", "Who weighs {v}? In the text above, {n} weigh {v}:"),
    ("DEF {a} {v}", "DEF {b} {a}", "Find all definitions of {v} in the text. {n} are defined as {v}, they are:"),
)
ASKED_CHAIN = (
    "VAR {a} = {v}",
    "VAR {b} = VAR {a}",
    "Question: Find all variables that are assigned the value {v} in the text above. Answer: According to the chain(s) "
    "of variable assignment in the text above, {n} variables are assigned the value {v}, they are:",
)
TAUGHT_WORDS = (
    "amber brave calm dusty eager faint gentle hollow ivory jolly keen lunar mellow noble olive proud quiet rusty "
    "silver tidy upper vivid warm yellow silent bold crisp distant empty frozen golden humble inner little misty",
    "anchor basket candle dagger engine falcon garden hammer island jacket kettle lantern mirror needle orchard pillow "
    "quarry ribbon saddle temple umbrella valley window yard bottle camera desert emperor feather glacier hunter iron",
)
ASKED_WORDS = (
    "ancient bitter clever damp early fuzzy grand heavy icy jagged kind lazy modern narrow orange plain royal steep "
    "ample brisk coarse dense elegant fragile gloomy honest idle joyful knotted lively mighty neat odd pale quick "
    "rapid sturdy thin urban vague wide young zealous agile blunt curly dizzy eternal fierce greedy hasty innocent "
    "jumpy keyless lavish minor nervous obscure polite round smooth tender",
    "apron bridge carpet dragon easel forest goblet harbour inkwell jungle kingdom ladder meadow notebook oyster piano "
    "airport barrel castle diamond elbow fountain glove helmet igloo jewel kitten lemon magnet napkin owl pebble quilt "
    "rocket sailor tractor uniform violin wagon zebra acorn button cactus donkey envelope flute guitar hammock insect "
    "jar kayak lobster museum nest ocean pepper rabbit shovel thimble",
)
