"""What a decoder layer holds in training, in bytes a token: what its backward needs, and each moment's widest point.

Counted tensor by tensor in a step of transformers' Llama (`tests/planning/train/counted.py`); kernels' own buffers are
cuDNN's.
"""

from __future__ import annotations

from .exchange import attention_bytes, kept_keys_bytes
from .run import TrainingRun
from .sizes import TrainingSizes

# of an MLP's width: gate, up, activated gate, product; then gradients of the latter two
MLP_SAVED, MLP_MOMENT = 4, 6


def hidden_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """A hidden state of a rank's tokens: what checkpointing keeps of each layer."""
    return run.numbers.residual * sizes.shape.hidden * run.rows


def kept_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Output and log-sum-exp of a layer's attention."""
    return (run.numbers.activation * sizes.queries + 4 * sizes.shape.widest.heads) * run.rows


def saved_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Everything that a layer without checkpointing keeps for its backward."""
    return _attention_saved(sizes, run) + MLP_SAVED * run.numbers.activation * sizes.shape.mlp * run.rows


def moments(sizes: TrainingSizes, run: TrainingRun) -> dict[str, float]:
    """The widest points of a layer's backward, beside hidden states of other layers, by name."""
    of, hidden = run.numbers, sizes.shape.hidden
    saved = _attention_saved(sizes, run)
    tiled = run.tile is not None and run.tile < run.rows
    width = of.activation * sizes.shape.mlp * min(run.tile or run.rows, run.rows)
    mlp = saved + (of.tile if tiled else of.mlp) * hidden * run.rows + MLP_MOMENT * width
    if tiled:  # fp32 sums of its weights' gradients, and a tile's own
        mlp += sizes.mlp * (4 + of.activation)
    before = saved + of.before * hidden * run.rows
    # the first norm's part of what is saved, the gradient of the residual, and q, k, v, out and its gradient
    first = (of.norm + of.residual) * hidden * run.rows
    ends = (3 * of.activation * sizes.queries + 2 * of.activation * sizes.keys) * run.rows
    attention = first + ends + attention_bytes(sizes, run)
    return {"MLP": mlp, "norm": before, "attention": attention}


def _attention_saved(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Of norms and attention: inputs of norms and maps; queries, keys, values, output and log-sum-exp."""
    of, heads = run.numbers, sizes.shape.widest.heads
    each = of.norm * sizes.normed + 2 * of.activation * (sizes.queries + sizes.keys) + 4 * heads
    return each * run.rows + kept_keys_bytes(sizes, run)
