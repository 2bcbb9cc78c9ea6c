"""`GroupCosts`: the seconds that documents take in a group of ranks, forward and backward; measured once per card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...storage.files import write_whole
from ..cutting import TOKEN_IN_PAIRS

# a Llama of 1.24B parameters on H100s with full recomputation, by the measurements of `cutting`: seconds for a pair of
# query and key in all layers, bytes of keys and values of a token in all layers, and what passes of them in a step
PAIR_S = 2.32e-9
KEY_BYTES = 2 * 8 * 64 * 2 * 16
PASSES = 5  # keys in forward and in recomputation, and their gradients in fp32
NVLINK, NETWORK = 300e9, 25e9  # bytes a second, inside a host and between hosts
EXCHANGE_S = 4e-3  # of the exchanges of a step, however few their bytes


@dataclass(frozen=True)
class GroupCosts:
    """Seconds of a forward and backward pass in a group of ranks: the model of FlexSP, and a floor.

    A GPU works while the host launches, so a pass takes the longer of the two: `least` is the host's launches.

    Args:
        token: A token on one rank, without attention.
        pair: A pair of query and key that is visible, on one rank.
        exchange: A token's keys in groups of 1, 2, 4, ... ranks; the first is 0.
        fixed: A pass in groups of 1, 2, 4, ... ranks, whatever the documents.
        device: The card that was measured.
        least: What no pass in groups of 1, 2, 4, ... ranks goes below, however short the documents; none: zeros.
    """

    token: float
    pair: float
    exchange: tuple[float, ...]
    fixed: tuple[float, ...]
    device: str
    least: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.least:
            object.__setattr__(self, "least", (0.0,) * len(self.fixed))
        numbers = (self.token, self.pair, *self.exchange, *self.fixed, *self.least)
        sizes = {len(self.exchange), len(self.fixed), len(self.least)}
        if not all(0 <= x < float("inf") for x in numbers) or len(sizes) > 1 or not self.fixed:
            raise ValueError(
                f"{self!r}: expected seconds of 0 or more, and one of `exchange`, of `fixed` and of `least` for each "
                f"size of group."
            )

    @property
    def ranks(self) -> int:
        """The largest group that they hold for."""
        return 2 ** (len(self.fixed) - 1)

    def document(self, length: int, ranks: int) -> float:
        """Of one document in a group of so many ranks, a power of two."""
        pairs = length * (length + 1) // 2
        return (self.token * length + self.pair * pairs) / ranks + self.exchange[ranks.bit_length() - 1] * length

    def group(self, lengths: Iterable[int], ranks: int) -> float:
        """Of a pass over documents in one group of so many ranks."""
        size = ranks.bit_length() - 1
        return max(self.least[size], self.fixed[size] + sum(self.document(length, ranks) for length in lengths))

    def write(self, path: str | Path) -> None:
        """Write them to a JSON file."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: str | Path, ranks: int, device: str) -> GroupCosts:
        """Read a file of `write`; ValueError if it is of another card or of fewer ranks, or if documents are free."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            of_sizes = {name: tuple(fields[name]) for name in ("exchange", "fixed")}
            found = cls(**(fields | of_sizes | {"least": tuple(fields.get("least", ()))}))  # older files have none
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: expected a file that `hf-longctx calibrate` has written ({error}).") from None
        if found.device != device:
            raise ValueError(
                f"{path} was measured on {found.device}, and this is {device}: the costs of groups differ. Run "
                f"`hf-longctx calibrate` here."
            )
        if not found.token and not found.pair:
            raise ValueError(
                f"{path} says that documents take no time (token and pair are 0): the measurement did not reach "
                f"lengths that keep the card busy. Run `hf-longctx calibrate` again: it measures longer documents now."
            )
        if found.ranks < ranks:
            raise ValueError(
                f"{path} was measured in groups of up to {found.ranks} ranks, and there are groups of {ranks} here. "
                f"Run `hf-longctx calibrate` with as many processes as the training."
            )
        return found


def rough_costs(ranks: int, ranks_of_a_host: int) -> GroupCosts:
    """Of a Llama of 1.24B parameters on H100s, where nothing was measured: ratios between its terms are what counts."""
    sizes = [2**k for k in range(ranks.bit_length())]
    links = [NVLINK if size <= ranks_of_a_host else NETWORK for size in sizes]
    exchange = tuple(PASSES * KEY_BYTES * (size - 1) / size / link for size, link in zip(sizes, links, strict=True))
    fixed = tuple(EXCHANGE_S * (size > 1) for size in sizes)
    return GroupCosts(TOKEN_IN_PAIRS * PAIR_S, PAIR_S, exchange, fixed, "H100 (rough)")
