"""Pairs for DPO by the length score, after LongWriter: the best of some answers, and a random one of the worse ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longctx.evaluation.writing import ended_length_score, has_loops


@dataclass(frozen=True)
class Sampled:
    """A prompt of a writing set, and what a model wrote.

    Args:
        prompt: Its messages, the answer left out.
        required: Words asked for.
        texts: Answers, two at least.
        ended: Of each answer, whether it ended by itself, with the end token.
        looping: Of each answer, whether it goes round in circles, also for a part of it; None: as `has_loops` says.
    """

    prompt: Sequence[dict[str, str]]
    required: int
    texts: Sequence[str]
    ended: Sequence[bool]
    looping: Sequence[bool] | None = None


def length_pairs(
    samples: Iterable[Sampled], *, seed: int = 0, least: float = 0.0, loops: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """A pair of each prompt, in the form that DPOTrainer takes, and how many prompts gave none.

    The score is S_l, and 0 for an answer that did not end by itself: S_l alone would choose answers that were cut.
    "answers" of a pair are the numbers of its texts: two may be the same, of which one ended.

    Args:
        samples: Of an iterator, one at a time is used.
        seed: Of the choice among the worse answers.
        least: By which the best score has to be above the other, 0 to 1. Equal ones never make a pair.
        loops: Of the worse answers, one that loops is taken where there is any, and one that loops has the score 0.

    Raises:
        ValueError: A prompt has fewer than two answers, or not as many marks of their ends.
    """
    rng, pairs, without = random.Random(f"length pairs/{seed}"), list[dict[str, Any]](), 0
    for number, one in enumerate(samples):
        if len(one.texts) < 2 or len(one.texts) != len(one.ended):
            raise ValueError(
                f"prompt {number}: {len(one.texts)} answers and {len(one.ended)} marks of whether they ended; expected "
                "two answers at least, and a mark for each."
            )
        scores = [ended_length_score(t, one.required, end) for t, end in zip(one.texts, one.ended, strict=True)]
        looping = [has_loops(text) for text in one.texts] if loops and one.looping is None else one.looping
        loop = {i for i, goes_round in enumerate(looping or ()) if loops and goes_round}
        scores = [0.0 if i in loop else score for i, score in enumerate(scores)]
        best = max(range(len(scores)), key=scores.__getitem__)
        worse = [i for i, score in enumerate(scores) if score < scores[best] and score <= scores[best] - least]
        if not worse:
            without += 1
            continue
        other = rng.choice([i for i in worse if i in loop] or worse)
        said = {
            key: [{"role": "assistant", "content": one.texts[i]}] for key, i in (("chosen", best), ("rejected", other))
        }
        which = {"scores": [scores[best], scores[other]], "answers": [best, other]}
        pairs.append({"prompt": list(one.prompt), **said, **which})
    return pairs, without
