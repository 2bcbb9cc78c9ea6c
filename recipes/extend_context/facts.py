"""Facts hidden in a text and asked for at its end, in words that no evaluation uses."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hf_longctx.text.joins import ids_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# the fact, the question, the beginning of its answer
WORDINGS = (
    ("{who} keeps the bicycle in shed {value}.", "In which shed does {who} keep the bicycle?", "In shed"),
    ("The parcel for {who} went to locker {value}.", "Which locker has the parcel for {who}?", "It is locker"),
    ("On the list, {who} is entered as {value}.", "As what is {who} entered on the list?", "{who} is entered as"),
    ("{who}'s train leaves from {value}.", "From where does {who}'s train leave?", "It leaves from"),
)
HEADS = ("Bar", "Cal", "Dor", "Fen", "Gil", "Hol", "Jas", "Kel", "Lor", "Mar", "Nor", "Pel", "Ros", "Sel", "Tam", "Wil")
TAILS = ("a", "an", "bert", "da", "eth", "ia", "ina", "is", "mund", "na", "o", "ric", "sey", "ton", "us", "vin", "wen")
PLACES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ridge")


def names(rng: random.Random, count: int) -> list[str]:
    """Different first and last names."""
    every = [head + tail for head in HEADS for tail in TAILS]
    return [" ".join(pair) for pair in zip(rng.sample(every, count), rng.sample(every, count), strict=True)]


def value(rng: random.Random) -> str:
    """Digits mostly, or two words."""
    if rng.random() < 0.25:
        return " ".join(rng.sample(PLACES, 2))
    return str(rng.randrange(10 ** (digits := rng.randint(3, 7)), 10 ** (digits + 1)))


def hide(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerBase,
    text: list[int],
    length: int,
    most: int,
    weight: float,
    near: float = 0.0,
) -> tuple[list[int], list[float]]:
    """`length` tokens of the text with 1 to `most` facts at random places, asked for at the end in random order.

    Args:
        rng: Of everything that is random.
        tokenizer: Of the facts.
        text: Tokens, at least as many as remain beside facts and questions.
        length: Of the window.
        most: Facts at most.
        weight: Of the tokens of answers.
        near: The share of facts whose distance from the end is drawn by its logarithm: as often near as far.

    Returns:
        The tokens, and what each weighs as a target: `weight` for those of answers, 1 for others.
    """
    told, asked = [], []
    for who in names(rng, rng.randint(1, most)):
        fact, question, start = (part.format(who=who, value="{value}") for part in rng.choice(WORDINGS))
        hidden = value(rng)
        told.append(ids_after(tokenizer, "a", f"\n{fact.format(value=hidden)}\n"))
        prompt = f"\n{question} {start}"
        asked.append((ids_after(tokenizer, "a", prompt), ids_after(tokenizer, "a", f" {hidden}.")))
    rng.shuffle(asked)
    room = length - sum(map(len, told)) - sum(len(question) + len(answer) for question, answer in asked)
    if room < len(told) or len(text) < room:
        raise ValueError(
            f"a window of {length} tokens holds no {len(told)} facts with their questions, which take {length - room}. "
            f"Give longer windows (retrieval: lengths) or fewer facts."
        )
    ids = list(text[:room])
    # from the last place on, so that places stay those of the text
    for place, fact_ids in zip(sorted(places(rng, room, len(told), near), reverse=True), told, strict=True):
        ids[place:place] = fact_ids
    weights = [1.0] * len(ids)
    for question_ids, answer_ids in asked:
        ids += question_ids + answer_ids
        weights += [1.0] * len(question_ids) + [weight] * len(answer_ids)
    return ids, weights


def places(rng: random.Random, room: int, count: int, near: float) -> list[int]:
    """So many different places from 0 to below `room`."""
    found = set(rng.sample(range(room), count))
    if near:
        far = [place for place in found if rng.random() >= near]
        found = set(far)
        while len(found) < count:
            found.add(room - round(room ** rng.random()))
    return list(found)
