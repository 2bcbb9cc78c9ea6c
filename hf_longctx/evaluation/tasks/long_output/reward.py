"""How good an answer is as one number, and as a function that TRL's GRPOTrainer takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .base import Problem
from .verify import verify

FRAME, SHARE, EXACT, UNENDED = 0.1, 0.6, 0.3, 0.2  # what each is worth; the last one is taken away


def reward(problem: Problem, text: str, ended: bool) -> float:
    """0 to 1: for the frame, for the share that is right before the first wrong line, and for all of it.

    Args:
        problem: What was asked.
        text: What was written.
        ended: Whether the text ended by itself, with the end token; one that did not loses 0.2.
    """
    found = verify(problem, text)
    return max(0.0, FRAME * found.frame + SHARE * found.share + EXACT * found.exact - UNENDED * (not ended))


def verifier_reward(end_ids: int | Iterable[int]) -> Callable[..., list[float]]:
    """A reward function for GRPOTrainer, for data sets of `grpo_row`.

    Args:
        end_ids: Token ids that end an answer, the tokenizer's `eos_token_id`, or several.

    Raises:
        ValueError: There is no end token: every answer would count as unended.
    """
    ends = {end_ids} if isinstance(end_ids, int) else set(end_ids or ())
    if not ends:
        raise ValueError("end_ids is empty: expected the id of the token that ends an answer, tokenizer.eos_token_id.")

    def verifier(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], problem: Sequence[str], **_: Any
    ) -> list[float]:
        return [
            reward(Problem.from_dict(json.loads(one)), text_of(completion), bool(len(ids)) and int(ids[-1]) in ends)
            for completion, ids, one in zip(completions, completion_ids, problem, strict=True)
        ]

    return verifier


def text_of(completion: Any) -> str:
    """What TRL gives a reward function as an answer: a text, or the content of a chat's messages."""
    return completion if isinstance(completion, str) else "".join(str(one["content"]) for one in completion)
