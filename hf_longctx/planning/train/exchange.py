"""What attention's backward holds on a rank while it runs, and what travels between ranks, by kind of exchange.

Counted in the operators of `parallel/` for one document in zigzag pieces, the rank that holds most.
"""

from __future__ import annotations

from dataclasses import dataclass

from .run import TrainingRun
from .sizes import TrainingSizes

MOST_BYTES = 2 * 2**30  # from which "auto" takes a ring (parallel/model/choosing.py)
GRADIENT = 4  # sums of gradients are fp32
WORKSPACE = 4  # cuDNN sums the gradients of queries in fp32


@dataclass(frozen=True)
class Buffers:
    """Bytes of a rank's token for each query dim and each key dim, where numbers take `activation` bytes."""

    queries: int
    keys: int


def kind_of(sizes: TrainingSizes, run: TrainingRun) -> str:
    """How the ranks of this run exchange: "auto" by the size of the gathered keys and their gradients.

    A rank alone exchanges nothing ("none"), or does not even use the operator of `parallel/` ("stock").
    """
    if run.ranks == 1:
        return "stock" if run.kind == "stock" else "none"
    if sizes.window:
        return "halo"
    if run.kind != "auto":
        return run.kind
    return "gather" if run.tokens * 2 * sizes.keys * (2 + GRADIENT) <= MOST_BYTES else "ring"


def attention_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Held by the backward of a layer's attention beside its inputs, results included."""
    found = _buffers(kind_of(sizes, run), run.ranks, run.numbers.activation)
    return (found.queries * sizes.queries + found.keys * sizes.keys) * run.rows


def _buffers(kind: str, ranks: int, a: int) -> Buffers:
    # the fp32 gradient of queries, the kernel's own and the result, and the kernel's workspace
    queries = GRADIENT + 3 * a + 2 + WORKSPACE
    own = 2 * a + 2 * GRADIENT  # the rank's keys and values side by side, and their gradient
    made = 4 * a  # their gradients by the kernel, and as results
    if kind == "stock":
        return Buffers(a + WORKSPACE, 2 * a)
    if kind in ("none", "halo"):
        return Buffers(queries, own + made)
    if kind == "ring":  # keys that arrive, those that leave, and gradients on their way
        return Buffers(queries, own + made + 2 * (a + GRADIENT) * (2 if ranks > 2 else 1) + a)
    if kind == "gather":  # the table, the stretch of it that is seen, and gradients of both
        return Buffers(queries, own + made + 2 * a + ranks * (6 * a + 4 * GRADIENT))
    return Buffers(queries + 7 * a, own)


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
