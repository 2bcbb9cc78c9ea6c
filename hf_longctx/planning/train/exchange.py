"""What attention's backward holds on a rank while it runs, and what travels between ranks, by kind of exchange.

Counted in the operators of `parallel/` for one document in zigzag pieces, the rank that holds most.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...parallel.model.choosing import by_length
from .run import TrainingRun
from .sizes import TrainingSizes

GRADIENT = 4  # sums of gradients are fp32
WORKSPACE = 4  # cuDNN sums the gradients of queries in fp32


@dataclass(frozen=True)
class Buffers:
    """Bytes of a rank's token for each query dim and each key dim, where numbers take `activation` bytes."""

    queries: int
    keys: int


def kind_of(sizes: TrainingSizes, run: TrainingRun) -> str:
    """How the ranks of this run exchange: "auto" by work and by the size of gathered keys.

    A rank alone exchanges nothing ("none"), or does not even use the operator of `parallel/` ("stock").
    """
    if run.ranks == 1:
        return "stock" if run.kind == "stock" else "none"
    if sizes.window:
        return "halo"
    if run.kind != "auto":
        return run.kind
    return by_length([run.tokens], run.ranks, sizes.queries, sizes.keys)[0]


def lacks_heads(sizes: TrainingSizes, run: TrainingRun) -> bool:
    """Whether Ulysses has more ranks than query heads, which SequenceParallel refuses."""
    return run.kind == "ulysses" and sizes.shape.widest.heads < run.ranks


def attention_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Held by the backward of a layer's attention beside its inputs, results included."""
    found = _buffers(kind_of(sizes, run), run.ranks, run.numbers.activation)
    return (found.queries * sizes.queries + found.keys * sizes.keys) * run.rows


def kept_keys_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """The gathered keys that a layer's forward keeps for its backward, those that a piece sees for every piece.

    Two pieces of a document cut by zigzag see up to 1.25 times its keys. With `remat` they are fetched again.
    """
    if kind_of(sizes, run) != "gather" or run.remat:
        return 0.0
    return 1.25 * run.tokens * 2 * sizes.keys * run.numbers.activation


def _buffers(kind: str, ranks: int, a: int) -> Buffers:
    own = 2 * a + 2 * GRADIENT  # the rank's keys and values side by side, and the sum of their gradients
    if kind in ("stock", "none"):  # gradients by the kernel
        return Buffers(a + WORKSPACE, 2 * a)
    if kind == "halo":  # the same, and row by row
        return Buffers(2 * a + WORKSPACE, own + 4 * a)
    if kind == "ring":  # a sum of the queries' gradients; keys that arrive, those that leave, gradients on their way
        return Buffers(GRADIENT + 3 * a + WORKSPACE, own + 4 * a + 2 * (a + GRADIENT) * (2 if ranks > 2 else 1))
    if kind == "gather":  # the table, the stretches of it that are seen, and gradients of both
        return Buffers(2 * a + WORKSPACE, own + ranks * (6 * a + 4 * GRADIENT))
    return Buffers(9 * a + WORKSPACE, own)


def travelling_bytes(sizes: TrainingSizes, run: TrainingRun, passes: int) -> float:
    """What a rank receives in a layer: keys in each pass of attention's forward and in backward, and gradients."""
    kind, a, ranks = kind_of(sizes, run), run.numbers.activation, run.ranks
    if kind in ("stock", "none", "halo"):
        return 0.0
    if kind == "ulysses":
        each = 2 * (sizes.queries + sizes.keys) * a * run.rows * (ranks - 1) / ranks
        return each * (passes + 2)
    others = (ranks - 1) * run.rows * 2 * sizes.keys
    return others * (a * (passes + 1) + GRADIENT)
