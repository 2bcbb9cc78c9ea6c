"""`step_seconds`: the time of a training step on one card of a group, the roofline of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .. import account
from ..hardware import Machine
from .exchange import kind_of, travelling_bytes
from .layer import hidden_bytes, kept_bytes
from .rates import H100_TRAINING, TrainingRates
from .run import TrainingRun
from .sizes import TrainingSizes

BACKWARD_ATTENTION = 2.5  # matmuls of attention's backward over those of its forward
# element-wise traffic of a layer's forward and backward, in numbers of the hidden state and of the MLP's width
HIDDEN_PASSES, MLP_PASSES = (15, 30), (3.5, 7)
FUSED_PASSES = (8, 16)  # of the hidden state where norms are one kernel each: estimated
# bytes of the loss for each logit: fp32 log-probabilities made twice, their gradient in place; and in the logits' dtype
LOGIT_BYTES, LOGIT_PASSES = 28, 3


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of the parts, which follow each other on the card, and of the host, which runs beside it.

    Args:
        matmuls: Of linear maps, the head among them.
        attention: Of its kernels.
        element_wise: Norms, activations, residuals, the loss, sums of tiles and the optimizer.
        exchange: Between ranks.
        copies: To the host and back.
        host: What the host needs to launch all this.
        between: What the host needs between two steps, while the card waits.
    """

    matmuls: float
    attention: float
    element_wise: float
    exchange: float
    copies: float
    host: float
    between: float

    @property
    def step(self) -> float:
        """The card's time or the host's, whichever is longer, and the time between steps."""
        card = self.matmuls + self.attention + self.element_wise + self.exchange + self.copies
        return max(card, self.host) + self.between


def step_seconds(
    sizes: TrainingSizes, run: TrainingRun, machine: Machine, rates: TrainingRates = H100_TRAINING
) -> StepTime:
    """The time of a step of `run` on a machine."""
    shape, rows, layers = sizes.shape, run.rows, sizes.shape.n_layers
    again = 1 if run.checkpointing else 0
    attention_again = 0 if run.remat else again
    peak = machine.peak_flops(2 if run.numbers.activation == 2 else 4)
    of_weights = 0 if run.trained is not None else 1
    passes = 1 + again + 1 + of_weights
    flops = account.matmul_flops(shape.active, 1) * passes
    flops += account.matmul_flops(shape.lm_head, 1) * (2 + of_weights + (1 if run.chunked_loss else 0))
    if run.tile and not run.checkpointing:  # its backward computes the tile again
        flops += account.matmul_flops(sizes.mlp * layers, 1)
    pairs = sum(
        n * account.attention_flops(account.causal_pairs(0, run.tokens, layer.span), layer.heads, layer.head_dim)
        for layer, n in shape.layers
    )
    forwards = (1 + attention_again) / rates.attention + BACKWARD_ATTENTION / rates.attention_backward
    of, hidden_passes = run.numbers, FUSED_PASSES if run.fused_norms else HIDDEN_PASSES
    traffic = sum(
        layers * rows * (shape.hidden * hidden * of.residual + shape.mlp * mlp * of.activation) * times
        for hidden, mlp, times in zip(hidden_passes, MLP_PASSES, (1 + again, 1), strict=True)
    )
    traffic += shape.vocab * rows * (LOGIT_BYTES + LOGIT_PASSES * of.activation)
    tiles = layers * (ceil(rows / run.tile) if run.tile and run.tile < rows else 0)
    if of_weights:  # a tile's gradients are added to sums in fp32
        traffic += tiles * sizes.mlp * (of.activation + 8)
    small = tiles * rates.tile_s
    return StepTime(
        matmuls=flops * rows / (rates.matmul * peak),
        attention=pairs / run.ranks * forwards / peak,
        element_wise=small + (traffic + _update_bytes(sizes, run)) / (rates.bandwidth * 1e9 * machine.bandwidth_gb_s),
        exchange=_exchange_seconds(sizes, run, rates, 1 + attention_again),
        copies=_copied_bytes(sizes, run) / (1e9 * rates.host_gb_s),
        host=layers * (rates.launch_s if again else rates.launch_once_s) + small,
        between=rates.between_s,
    )


def _update_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """Weights, gradients and states, read and written by the optimizer's step."""
    of, split = run.numbers, run.gpus if run.shard else 1
    trained = sizes.shape.parameters if run.trained is None else run.trained
    each = 2 * of.weight + of.gradient + 2 * (run.keeps.moments * of.moment + run.keeps.n_bytes)
    return trained * each / split


def _exchange_seconds(sizes: TrainingSizes, run: TrainingRun, rates: TrainingRates, forwards: int) -> float:
    kind, layers = kind_of(sizes, run), sizes.shape.n_layers
    if kind in ("stock", "none"):
        return 0.0
    exchanges = (forwards + 2) * (run.ranks - 1 if kind == "ring" else 1)
    moved = travelling_bytes(sizes, run, forwards) / (1e9 * rates.link_gb_s)
    return layers * (exchanges * rates.link_s + moved)


def _copied_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    each = (hidden_bytes(sizes, run) if run.offload else 0.0) + (kept_bytes(sizes, run) if run.keep_on_host else 0.0)
    return 2 * sizes.shape.n_layers * each
