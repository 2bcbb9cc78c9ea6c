"""The longest step that fits: found from steps that fit and steps that do not, on cards that are simulated."""

from collections.abc import Callable
from typing import Any

import pytest

from recipes.far.beside import STOCK
from recipes.far.others import ACCELERATE, FAR, SHORT, STEP, UNIT, main, reach
from recipes.far.steps import GIB

CARD = 77.0
WEIGHTS, LOGITS = 9e9, 2e5  # bytes of a model, and of a token
GROWTH = {
    "by tokens": lambda tokens: WEIGHTS + 1.6e6 * tokens,
    # the optimiser's step is the peak of short ones
    "level, then by tokens": lambda tokens: max(9.958e9 + 25 * tokens, WEIGHTS + LOGITS * tokens),
    "more and more": lambda tokens: WEIGHTS + 8e4 * tokens * (1 + tokens / 3e5),
}


class Card:
    """A GPU on which steps take so many bytes."""

    def __init__(self, peak: Callable[[float], float]) -> None:
        self.peak, self.tried = peak, list[int]()

    def __call__(self, tokens: int) -> dict[str, Any]:
        self.tried.append(tokens)
        peak = self.peak(tokens)
        return {"out_of_memory": "full"} if peak > CARD * GIB else {"seconds": 1.0, "peak_bytes": int(peak)}


@pytest.mark.parametrize("peak", GROWTH.values(), ids=GROWTH)
def test_the_longest_step_is_bracketed(peak: Callable[[float], float]) -> None:
    card = Card(peak)
    found = reach(card, CARD)
    fits = max(one["tokens"] for one in found if "seconds" in one)
    fails = min(one["tokens"] for one in found if "out_of_memory" in one)
    assert fits < fails <= fits * (1 + 1 / STEP) + UNIT
    assert peak(fits) <= CARD * GIB < peak(fails)
    assert [one["tokens"] for one in found] == card.tried
    for n, tokens in enumerate(card.tried[len(SHORT) :], len(SHORT)):
        longest = max(one["tokens"] for one in found[:n] if "seconds" in one)
        assert tokens <= FAR * longest, "a step so long may take a whole hold and tell nothing"


@pytest.mark.parametrize("off", [0.9, 0.99, 1.0, 1.02, 1.1])
def test_a_search_goes_on_near_the_end(off: float) -> None:
    peak = GROWTH["more and more"]
    end = max(tokens for tokens in range(0, 2**20, UNIT) if peak(tokens) <= CARD * GIB)
    card = Card(peak)
    found = reach(card, CARD, near=int(off * end))
    fits = max(one["tokens"] for one in found if "seconds" in one)
    fails = min(one["tokens"] for one in found if "out_of_memory" in one)
    assert fits <= end < fails <= fits * (1 + 1 / STEP) + UNIT
    assert card.tried[2] == int(off * end) // UNIT * UNIT
    assert len(card.tried) <= 3 + STEP * abs(off - 1) + 3


@pytest.mark.parametrize("words", [["--near", "8k"], ["--near", "64k,128k"]])
def test_a_length_to_begin_with_that_says_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="expected one length of more than 16,384"):
        main([*words, "--lines", STOCK])
    with pytest.raises(SystemExit, match="one of --lines"):
        main(["--near", "64k", "--lines", STOCK, ACCELERATE])


def test_a_step_that_fails_ends_the_search_and_says_why() -> None:
    found = reach(
        lambda tokens: {"failed": "no"} if tokens > 2 * SHORT[1] else {"seconds": 1.0, "peak_bytes": tokens}, CARD
    )
    assert [("failed" in one) for one in found] == [False, False, True]
    found = reach(lambda tokens: {"out_of_memory": "full"}, CARD)
    assert [one["tokens"] for one in found] == list(SHORT)


def test_without_a_gpu_only_the_short_steps_are_made() -> None:
    found = reach(lambda tokens: {"seconds": 1.0, "peak_bytes": 0}, CARD)
    assert [one["tokens"] for one in found] == list(SHORT)
