"""Many answers at once. Each has its own limit, and ends at the end token."""

# B rows, W columns of prompts, S columns of the cache, V vocabulary
from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.long_writer.batching import FIXED, columns, rounded, together
from recipes.long_writer.grouped import attending_grouped
from recipes.long_writer.step import Step

WATCH = 32  # steps between looks at what has ended
AHEAD = 512  # columns of a cache that are not read yet, at least


@dataclass
class Written:
    """An answer.

    Args:
        ids: Its tokens, the end token included.
        ended: Whether it ended by itself.
        log_probs: Of each token, at the temperature at which it was drawn; top_p is left out of it.
    """

    ids: list[int]
    ended: bool
    log_probs: list[float]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 takes the most likely one.
        top_p: Of the tokens that are drawn from.
        seed: Of the draws.
        banned: Tokens that are never written.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    banned: tuple[int, ...] = ()


class LateError(TimeoutError):
    """The time was over before every answer was written.

    Args:
        written: Of each prompt the answer, or None.
    """

    def __init__(self, written: list[Written | None]) -> None:
        super().__init__(f"{written.count(None)} of {len(written)} answers were not written in time.")
        self.written = written


def write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    ends: Collection[int],
    sampling: Sampling | None = None,
    *,
    tokens_at_once: int,
    until: float | None = None,
) -> list[Written]:
    """The answers to prompts, in batches whose caches hold at most `tokens_at_once` tokens.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids.
        limits: The most tokens of each answer.
        ends: Tokens that end an answer.
        sampling: Greedy if it is None.
        tokens_at_once: Prompts and answers, padding included.
        until: `time.monotonic()` after which nothing is written.

    Raises:
        LateError: They are not written by then. It has those of the batches that are.
    """
    found: list[Written | None] = [None] * len(prompts)
    for batch in together([len(prompt) for prompt in prompts], limits, tokens_at_once):
        with attending_grouped(model):
            own = ([prompts[i] for i in batch], [limits[i] for i in batch])
            some = _batch(model, *own, ends, sampling or Sampling(), until)
        if some is None:
            raise LateError(found)
        for i, one in zip(batch, some, strict=True):
            found[i] = one
    return [one for one in found if one is not None]


@torch.no_grad()
def _batch(
    model: Any,
    prompts: list[Sequence[int]],
    limits: list[int],
    ends: Collection[int],
    sampling: Sampling,
    until: float | None,
) -> list[Written] | None:
    """The answers of a batch; None: they are not written in time."""
    device, rows, width = model.device, len(prompts), max(map(len, prompts))
    all_columns = columns([width], limits)
    ids_BW = torch.zeros(rows, width, dtype=torch.long)
    seen_BS = torch.zeros(rows, min(_next(width), all_columns), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BW[row, width - len(prompt) :] = torch.as_tensor(prompt)
        seen_BS[row, width - len(prompt) : width] = True
    step = Step(model, ids_BW.to(device), seen_BS.to(device))
    end_N = torch.tensor(sorted(ends), device=device)
    limit_B = torch.tensor(limits, device=device)
    generator = torch.Generator(device).manual_seed(sampling.seed)
    done_B = torch.zeros(rows, dtype=torch.bool, device=device)
    kept = _Kept(rows)
    room = seen_BS.shape[1]
    for number in range(max(limits)):
        token_B, chance_B = choose(step.logits_BV, sampling, generator)
        kept.add(token_B, chance_B)
        done_B |= torch.isin(token_B, end_N) | (limit_B <= number + 1)
        if number + 1 == max(limits):
            break
        full = width + number == room
        if full or number % WATCH == 0:
            if until is not None and time.monotonic() > until:
                return None
            left_N = (~done_B).nonzero()[:, 0]
            if not len(left_N):
                break
            # a smaller cache is read faster, where reading takes the time
            few = 2 * len(left_N) <= len(done_B) and len(done_B) * room > FIXED // 2
            if full or few:
                room = min(_next(width + number), all_columns)
                step = step.going_on(left_N, room)
                token_B, limit_B, done_B = token_B[left_N], limit_B[left_N], done_B[left_N]
                kept.only(left_N.tolist())
        step(token_B)
    return [_cut(*one, ends) for one in zip(*kept.all(), limits, strict=True)]


def _next(read: int) -> int:
    """Columns of a cache in which so many are read: not many more, and not so few that it is soon copied again."""
    return rounded(read + max(AHEAD, read // 2))


class _Kept:
    """What was chosen for rows, of which fewer and fewer go on."""

    def __init__(self, rows: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.chances: list[list[float]] = [[] for _ in range(rows)]
        self._rows = list(range(rows))
        self._steps: list[tuple[Tensor, Tensor]] = []

    def add(self, token_B: Tensor, chance_B: Tensor) -> None:
        """A step of the rows that go on."""
        self._steps.append((token_B, chance_B))

    def only(self, of_these: list[int]) -> None:
        """Some of the rows that go on still do."""
        self.all()
        self._rows = [self._rows[i] for i in of_these]

    def all(self) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probabilities of every row."""
        if self._steps:
            for into, each in zip((self.ids, self.chances), zip(*self._steps, strict=True), strict=True):
                for row, more in zip(self._rows, torch.stack(each, 1).tolist(), strict=True):
                    into[row] += more
        self._steps = []
        return self.ids, self.chances


def _cut(ids: list[int], log_probs: list[float], limit: int, ends: Collection[int]) -> Written:
    end = next((at for at, token in enumerate(ids[:limit]) if token in ends), None)
    length = limit if end is None else end + 1
    return Written(ids[:length], end is not None, log_probs[:length])


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The next token of each row, and its log-probability."""
    logits_BV = logits_BV.float()
    if sampling.banned:
        logits_BV = logits_BV.index_fill(1, torch.tensor(sampling.banned, device=logits_BV.device), -torch.inf)
    if sampling.temperature == 0:
        log_BV = logits_BV.log_softmax(-1)
        token_B = log_BV.argmax(-1)
    else:
        log_BV = (logits_BV / sampling.temperature).log_softmax(-1)
        token_B = torch.multinomial(_nucleus(log_BV.exp(), sampling.top_p), 1, generator=generator)[:, 0]
    return token_B, log_BV.gather(1, token_B[:, None])[:, 0]


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with those left out that are not among the most likely ones of together `top_p`."""
    if top_p >= 1:
        return p_BV
    sorted_BV, at_BV = p_BV.sort(-1, descending=True)
    kept_BV = sorted_BV * (sorted_BV.cumsum(-1) - sorted_BV < top_p)
    return torch.zeros_like(p_BV).scatter_(1, at_BV, kept_BV)
