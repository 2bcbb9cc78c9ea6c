"""`BucketSampler`: batches of pieces of one length, for any `DataLoader`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from ...settings import is_whole
from .odds import odds_of
from .order import steps, steps_of_a_pass


class BucketSampler(Sampler[list[int]]):
    """Batches of one bucket, with the same number of tokens each; `together` successive ones are of the same bucket.

    The order depends on the settings and the seed alone. An epoch has as many batches as the first pass over the data;
    what does not fill a step waits, so that no piece is lost, and each comes once a pass.

    Args:
        sizes: Tokens of each piece: `Decomposed.sizes`.
        tokens: Tokens of a batch, of one process.
        curriculum: "uniform", "grow-p2" (short ones first), "grow-linear", "shrink-p2", or odds by size.
        cycles: How often an epoch runs through the curriculum, each time with another part of every bucket.
        together: Batches of a step: processes (groups, under sequence parallelism) times accumulation steps. Data
            loaders of accelerate, which deal successive batches to the processes, then give all of them one bucket.
        seed: Of the order.

    Raises:
        ValueError: A batch cannot hold the longest piece, or the pieces do not fill one step.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        tokens: int,
        *,
        curriculum: str | Mapping[int, float] = "uniform",
        cycles: int = 1,
        together: int = 1,
        seed: int = 0,
    ) -> None:
        given, sizes = sizes, list(sizes) if isinstance(sizes, Iterable) else []
        if not sizes or not all(map(is_whole, sizes)):
            raise ValueError(
                f"sizes={given!r:.60}: expected how many tokens each piece has, at least one: decompose(...).sizes."
            )
        sizes = [int(size) for size in sizes]
        longest = max(sizes)
        if not is_whole(tokens, longest) or tokens % longest:
            raise ValueError(
                f"tokens={tokens!r}: the longest piece has {longest}. Expected a multiple of that, so that every step "
                f"has as many tokens; cut documents shorter (decompose(longest=)) for a smaller step."
            )
        if not is_whole(cycles) or not is_whole(together):
            raise ValueError(f"cycles={cycles!r}, together={together!r}: expected whole numbers, 1 or more.")
        self.together = together
        self._sizes, self._tokens, self._cycles, self._seed = sizes, tokens, cycles, seed
        self._odds = odds_of(curriculum, sorted(set(sizes)))
        self._steps = steps_of_a_pass(self._sizes, tokens * together)
        self._epoch = self._taken = self._start = 0
        if not self._steps:
            raise ValueError(
                f"no bucket fills a step of {tokens * together} tokens ({together} batches of {tokens}): there are "
                f"{sum(sizes)} tokens in all. Give more documents, or a smaller step."
            )

    def __len__(self) -> int:
        return self._steps * self.together

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of an epoch, from its beginning or where a loaded state stood; then the next epoch begins."""
        first, self._taken, self._start = self._epoch * len(self), self._start, 0
        for batch in islice(self._batches(), first + self._taken, first + len(self)):
            self._taken += 1
            yield batch
        self._epoch, self._taken = self._epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins. A state that was loaded stays, if it is of that epoch."""
        if epoch != self._epoch:
            self._epoch, self._taken, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands. With workers, a data loader has taken some batches that are not trained on yet."""
        return {"epoch": self._epoch, "taken": self._taken, "order": self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stood. ValueError if its order was another."""
        missing = {"epoch", "taken", "order"} - set(state if isinstance(state, Mapping) else ())
        if missing:
            raise ValueError(
                f"state={state!r:.60}: it lacks {', '.join(sorted(missing))}. Give what state_dict() of a "
                f"BucketSampler returned."
            )
        if state["order"] != self._order():
            raise ValueError(
                "the state is of other data or settings (sizes, tokens, curriculum, cycles, together, seed), so their "
                "order differs. Go on with those that the training began with, or begin again without the state."
            )
        # at an epoch's end the next one begins
        more, self._taken = divmod(int(state["taken"]), len(self))
        self._epoch, self._start = int(state["epoch"]) + more, self._taken

    def _batches(self) -> Iterator[list[int]]:
        step = self._tokens * self.together
        for pieces in steps(self._sizes, step, self._odds, self._cycles, self._seed):
            count = len(pieces) // self.together
            yield from (pieces[at : at + count] for at in range(0, len(pieces), count))

    def _order(self) -> str:
        """A short hash of everything that decides the order."""
        settings = (self._tokens, sorted(self._odds.items()), self._cycles, self.together, self._seed, self._sizes)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
