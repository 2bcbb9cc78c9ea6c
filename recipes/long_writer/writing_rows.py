"""Writing tasks of documents: a beginning, a length, and how the text really continues.

A beginning comes with several lengths in the same wording, so that the number alone decides.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from recipes.long_writer.parts import PART_WORDS, counted, parts_for
from recipes.long_writer.sentences import Document
from recipes.long_writer.wordings import Wording, drawn, step

LEAST, MOST = 100, 8000  # words that are asked for
LENGTHS = 3  # of a training beginning
BEGINNING = (40, 120)  # words of a beginning
EXACT = 0.1  # of the lengths that are asked for are not round
GOLDEN = (math.sqrt(5) - 1) / 2
TRIES = 2000  # beginnings in a row that do not fit, after which the documents count as exhausted
Row = dict[str, Any]


class Place(NamedTuple):
    """A beginning: its document, its first sentence, and the first one after it."""

    name: str
    start: int
    stop: int


def training_rows(
    documents: Mapping[str, Document], samples: int, *, seed: int, least: int = LEAST, most: int = MOST
) -> list[Row]:
    """Rows of `messages`, half of them in counted parts, in random order; lengths are log-uniform.

    Args:
        documents: By name; each is used in proportion to its words.
        samples: Rows to make. There are fewer where the documents do not hold more beginnings.
        seed: Of all that is random.
        least: Words that are asked for at least.
        most: Words that are asked for at most.

    Raises:
        ValueError: No beginning has two lengths.
    """
    rng, rows = random.Random(f"writing/{seed}"), list[Row]()
    for number, place in enumerate(_places(documents, rng, 2 * least)):
        document = documents[place.name]
        room = min(most, document.before[-1] - document.before[place.stop])
        # a single part counts nothing
        wording = drawn(rng, counted=number % 2 == 0 and room >= 4 * PART_WORDS)
        shortest = max(least, 2 * PART_WORDS) if wording.counted else least
        asked = sorted({_asked(rng, shortest, room, k) for k in range(LENGTHS)})
        found = [row for words in asked if (row := _row(document, place, wording, words))]
        # with one length, its text alone would decide
        rows += found if len(found) > 1 else []
        if len(rows) >= samples:
            break
    if not rows:
        raise ValueError(
            f"documents: {', '.join(documents)}: no passage of running text has two lengths of {least} to {most} "
            "words. Give longer documents, of prose with whole sentences."
        )
    rows = rows[:samples]
    rng.shuffle(rows)
    return rows


def held_back_rows(
    documents: Mapping[str, Document], beginnings: int, lengths: Sequence[int], *, seed: int
) -> list[Row]:
    """Rows of beginnings that have every length, each of these plain and in counted parts.

    Args:
        documents: By name, used in turn.
        beginnings: How many. There are fewer where the documents do not hold more.
        lengths: Words that are asked for.
        seed: Of all that is random.

    Raises:
        ValueError: No beginning has all lengths.
    """
    rng, rows = random.Random(f"held back/{seed}"), list[Row]()
    for place in _places(documents, rng, max(lengths), in_turn=True):
        forms = [drawn(rng, counted=False), drawn(rng, counted=True)]
        asked = [(form, words) for form in forms for words in lengths if not form.counted or parts_for(words) > 1]
        found = [row for form, words in asked if (row := _row(documents[place.name], place, form, words))]
        rows += found if len(found) == len(asked) else []
        if len(rows) == beginnings * len(asked):
            break
    if not rows:
        raise ValueError(
            f"held_back: {', '.join(documents)}: no passage can be cut at each of {list(lengths)} words. Hold back "
            "longer documents, or ask for other lengths."
        )
    return rows


def _places(
    documents: Mapping[str, Document], rng: random.Random, words: int, *, in_turn: bool = False
) -> Iterator[Place]:
    """Random beginnings with at least `words` words after them, each once.

    Where they are not in turn, they are spread over a document: the next one lies in the widest gap that is left, by
    multiples of the golden ratio. Random ones would leave half of a text unread while the other half is read twice.
    """
    names, seen, failed = list(documents), set[tuple[str, int]](), 0
    weights = [documents[name].before[-1] for name in names]
    turns, at = cycle(names), {} if in_turn else {name: rng.random() for name in names}
    while any(weights) and failed < TRIES:
        name = next(turns) if in_turn else rng.choices(names, weights)[0]
        document = documents[name]
        if in_turn:
            start = rng.randrange(len(document.sentences) or 1)
        else:
            at[name] = (at[name] + GOLDEN) % 1
            start = bisect.bisect_right(document.before, at[name] * document.before[-1]) - 1
        stop = document.cut(start, BEGINNING[0], *BEGINNING) if (name, start) not in seen else None
        seen.add((name, start))
        failed += 1
        if stop is not None and document.before[-1] - document.before[stop] >= words:
            failed = 0
            yield Place(name, start, stop)


def _asked(rng: random.Random, least: int, most: int, k: int) -> int:
    """A length of the `k`-th of equal parts of the range, whose logarithm is uniform; usually a round number."""
    share = (k + rng.random()) / LENGTHS
    words = round(least * math.exp(share * math.log(most / least)))
    return words if rng.random() < EXACT else max(least, step(words) * round(words / step(words)))


def _row(document: Document, place: Place, wording: Wording, words: int) -> Row | None:
    """A task with its answer; None where the text has no sentence that ends near enough."""
    stop = document.cut(place.stop, words, *wording.bounds(words))
    if stop is None:
        return None
    parts = parts_for(words)
    form = "counted" if wording.counted else "plain"
    sentences = document.sentences[place.stop : stop]
    text = counted(sentences, parts) if wording.counted else document.text(place.stop, stop)
    if text is None:
        return None
    asked = wording.prompt(document.text(place.start, place.stop), words, parts)
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": text}],
        "words": words,
        "form": form,
        "parts": parts if wording.counted else None,
        "written": document.before[stop] - document.before[place.stop],
        "kind": wording.kind,
        "source": place.name,
        "beginning": f"{place.name}-{place.start}",
    }
