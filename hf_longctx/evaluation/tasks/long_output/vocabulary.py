"""Names and words that problems are made of."""

from __future__ import annotations

import random
from functools import cache

_WORDS = (
    "river stone paper window garden bread silver morning engine letter market winter forest island teacher number "
    "music bridge yellow narrow quiet heavy simple broken golden distant open early north south water fire road field "
    "house cloud button copper ladder mirror"
)
WORDS = tuple(_WORDS.split())
PEOPLE = ("Ann", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jane")
ROOMS = ("kitchen", "hall", "garden", "attic", "cellar", "study")
THINGS = ("ball", "key", "book", "lamp", "coin", "hat")
_SYLLABLES = (
    "Bar Cor Del Fen Gal Har Kel Lor Mar Nor Pel Ros Sal Tor Vel Wes",
    "bury dale ford ham mere ney port ton wick field moor by",
)
_HEADS, _TAILS = (one.split() for one in _SYLLABLES)
_MIDDLES = ("", "an", "el", "in", "or", "as", "um", "ed")


@cache
def _places() -> tuple[list[str], list[str]]:
    short = list(dict.fromkeys(a + b + c for a in _HEADS for b in _MIDDLES for c in _TAILS))
    return short, short + [f"{which} {name}" for which in ("Old", "New", "Upper", "Lower") for name in short]


def places(rng: random.Random, n: int) -> list[str]:
    """`n` different names of places; of one word, where these suffice."""
    short, every = _places()
    return rng.sample(short if n <= len(short) else every, n)
