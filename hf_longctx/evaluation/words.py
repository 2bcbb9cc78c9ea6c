"""Random words, numbers and identifiers: RULER's needles are made of them.

RULER's words are an adjective and a noun from the word lists of the package `wonderwords`; these are, too.
"""

from __future__ import annotations

import random
import string
import uuid
from functools import cache
from importlib import resources

from ..upstream.installing import Package, check_packages, install_extra

WONDERWORDS = Package("needles are made of the words in wonderwords", ("wonderwords",), install_extra("evaluation"))


@cache
def word_list(kind: str) -> tuple[str, ...]:
    """A list of wonderwords: "noun", "adjective" or "verb".

    Raises:
        ImportError: wonderwords is not installed.
    """
    check_packages([WONDERWORDS])
    assets = resources.files("wonderwords") / "assets"
    return tuple(word.strip() for word in (assets / f"{kind}list.txt").read_text("utf-8").split("\n") if word.strip())


def a_word(rng: random.Random) -> str:
    """An adjective and a noun: "adjective-noun"."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def a_number(rng: random.Random, digits: int = 7) -> str:
    """A number of `digits` digits, the first of them not 0."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def a_uuid(rng: random.Random) -> str:
    """A version-4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, n: int, alphabet: str = string.ascii_lowercase) -> str:
    """A string of `n` random letters."""
    return "".join(rng.choices(alphabet, k=n))


MAKERS = {"words": a_word, "numbers": a_number, "uuids": a_uuid}
PACKAGES = {"words": (WONDERWORDS,), "numbers": (), "uuids": ()}  # what makes them


def distinct(rng: random.Random, kind: str, n: int) -> list[str]:
    """Different words, numbers or UUIDs, `n` of a kind of MAKERS."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[MAKERS[kind](rng)] = None
    return list(found)
