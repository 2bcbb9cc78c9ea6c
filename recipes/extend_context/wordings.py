"""The words of hidden facts: what is told of a key, how it is asked for, and how an answer begins."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

# the fact, the question, the beginning of its answer
OF_PERSONS = (
    ("{who} keeps the bicycle in shed {value}.", "In which shed does {who} keep the bicycle?", "In shed"),
    ("The parcel for {who} went to locker {value}.", "Which locker has the parcel for {who}?", "It is locker"),
    ("On the list, {who} is entered as {value}.", "As what is {who} entered on the list?", "{who} is entered as"),
    ("{who}'s train leaves from {value}.", "From where does {who}'s train leave?", "It leaves from"),
)
# as above; keys are persons, things, places or signs. An answer without a beginning begins where the question ends
VARIED = (
    *OF_PERSONS,
    ("{who} signs every letter with {value}.", "With what does {who} sign letters?", "{who} signs with"),
    ("Ask for {value} if you call on {who}.", "For whom does one ask when calling on {who}?", "One asks for"),
    ("Yesterday {value} was handed to {who}.", "Name what was handed to {who} yesterday.", "It was"),
    ("{who} is {value}. {value} is {who}.", "Who is who? {who} is", ""),
    ("{who}: {value}", "Who had which entry? {who}:", ""),
    ("Room {value} belongs to {who}, and to nobody else.", "Whose room is where? {who} has room", ""),
    ("{who} answers to {value}. So it is: {value} stands for {who}.", "To what does {who} answer?", "{who} answers to"),
    ("Please write {value} on the envelope for {who}.", "Q: What goes on the envelope for {who}?", "A:"),
    ("{What} is {value}.", "And {what}? {What} is", ""),
    ("{What} is {value}. Keep it in mind: {value}, {what}.", "Do you recall {what}?", "{What} is"),
    ("{What} is {value}. Indeed, {value} is {what}.", "So, {what}? {What} is", ""),
    ("{value} is {what}, and {what} is {value}.", "Tell {what} apart. {What} is", ""),
    ("{What} opens with {value}.", "How does one open {what}?", "{What} opens with"),
    ("You will find {value} painted on {what}.", "Tell me, which sign is painted on {what}?", "On {what} is painted"),
    ("{value} is how they call {what} here.", "How do they call {what}?", "They call it"),
    ("For {what}, take {value}; nothing else fits.", "What fits {what}?", "For {what} take"),
    ("Inventory: {what} ({value}).", "Look up {what} in the inventory.", "It has"),
    ("They sold {what} for {value} at last.", "For how much did they sell {what}?", "For"),
    ("On a label one reads '{what}, {value}'.", "Which label does {what} have?", "It reads"),
    ("{where} lies on road {value}.", "On which road lies {where}?", "{where} lies on road"),
    ("The post code of {where} reads {value}.", "Which post code has {where}?", "{where} has"),
    ("{where} has {value} inhabitants, they say.", "How many live in {where}?", "In {where} live"),
    ("From the tower of {where} one signals {value}.", "Which signal comes from {where}?", "From {where} comes"),
    ("In {where}, say {value} to the guard. Only {value} will do.", "Which word does the guard of {where} want?", ""),
    ("Ferry {value} sails to {where} on Mondays.", "Which ferry sails to {where}?", "To {where} sails ferry"),
    ("{sign} = {value}", "{sign} =", ""),
    ("{sign} -> {value}", "Resolve {sign}.", "{sign} ->"),
    ('"{sign}": "{value}",', "Print the entry of {sign}.", '"{sign}": "'),
    ("| {sign} | {value} |", "Repeat the row of {sign}: | {sign} |", ""),
    ("Ticket {sign} was closed with remark {value}.", "With which remark was ticket {sign} closed?", "With remark"),
    ("Line {sign} reads {value}; the others are blank.", "What does line {sign} read?", "Line {sign} reads"),
    ("set {sign} {value}", "get {sign}", "{sign}"),
    ("Version {sign} came out as {value}, and {value} it stayed.", "As what did {sign} come out?", "As"),
)
HEADS = ("Bar", "Cal", "Dor", "Fen", "Gil", "Hol", "Jas", "Kel", "Lor", "Mar", "Nor", "Pel", "Ros", "Sel", "Tam", "Wil")
TAILS = ("a", "an", "bert", "da", "eth", "ia", "ina", "is", "mund", "na", "o", "ric", "sey", "ton", "us", "vin", "wen")
PLACES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ridge")
LOOKS = ("blue", "broken", "heavy", "hollow", "lost", "narrow", "old", "painted", "quiet", "round", "second", "tall")
THINGS = ("anchor", "bell", "chest", "cupboard", "drum", "gate", "kettle", "ladder", "lantern", "mill", "valve", "well")
ENDS = ("bridge", "by", "dale", "field", "ford", "gate", "ham", "hurst", "mouth", "stead", "stow", "wick")


def a_person(rng: random.Random) -> str:
    """A first and a last name."""
    return " ".join(rng.choice(HEADS) + rng.choice(TAILS) for _ in range(2))


def a_thing(rng: random.Random) -> str:
    """The cupboard of some place, as it looks."""
    return f"the {rng.choice(LOOKS)} {rng.choice(THINGS)} of {a_place(rng)}"


def a_place(rng: random.Random) -> str:
    """The name of a village."""
    return rng.choice(HEADS) + rng.choice(("", "a", "e", "i", "in", "er")) + rng.choice(ENDS)


def a_sign(rng: random.Random) -> str:
    """Letters and digits, or words with a line between."""
    if rng.random() < 0.5:
        return "_".join(rng.sample((*PLACES, *THINGS), 2))
    return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3))) + f"{rng.randrange(10, 10_000)}"


KEYS: dict[str, Callable[[random.Random], str]] = {
    "who": a_person,
    "what": a_thing,
    "where": a_place,
    "sign": a_sign,
}


def a_value(rng: random.Random) -> str:
    """Digits, 3 to 10 of them, half of the time; or words, made-up words, codes, hours, parts."""
    kind = rng.randrange(10)
    if kind < 5:
        return str(rng.randrange(10 ** (digits := rng.randint(2, 9)), 10 ** (digits + 1)))
    if kind == 5:
        return " ".join(rng.sample((*PLACES, *THINGS), rng.randint(2, 3)))
    if kind == 6:
        return "".join(rng.choice(HEADS).lower() + rng.choice(TAILS) for _ in range(2))
    if kind == 7:
        return f"{''.join(rng.choices(string.ascii_uppercase, k=2))}-{rng.randrange(100, 100_000)}"
    if kind == 8:
        return "".join(rng.choices("0123456789abcdef", k=rng.randint(6, 10)))
    return f"{rng.randrange(24)}:{rng.randrange(10, 60)}" if rng.random() < 0.5 else f"{rng.randrange(10**6) / 1000}"


def capital(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]
