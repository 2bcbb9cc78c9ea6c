"""`need`: the memory of a training step, on the device and on the host. The one formula that everything here shares.

Backward begins with every layer's hidden state and no gradient, and ends with all gradients and no hidden state; the
peak is at one end or the other, or in the head's loss, or in the optimizer's step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.host import pinned_bytes
from .layer import hidden_bytes, kept_bytes, moments, saved_bytes
from .run import CHUNK, TrainingRun
from .sizes import TrainingSizes

RUNTIME_BYTES = 1_500_000_000  # CUDA context, libraries, and gaps between blocks of torch's allocator
ADAPTER = {"weight": 4, "gradient": 4, "moment": 4}  # adapters are fp32


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of a rank on its device, and of all ranks of a host on the host.

    Args:
        weights: Weights, with the optimizer's copy of them.
        states: Of the optimizer.
        gradients: Of all parameters, with DDP's copy of them.
        saved: What is kept from forward to backward on the device.
        moment: The most that is held for one moment beside: of `widest`.
        widest: "head", "MLP", "norm", "attention" or "optimizer".
        peak: The most that torch's allocator holds at a time. Not the sum: gradients come as what is saved goes.
        runtime: Beside torch's allocator.
        pinned: On the host, by all ranks.
    """

    weights: float
    states: float
    gradients: float
    saved: float
    moment: float
    widest: str
    peak: float
    runtime: float
    pinned: float

    @property
    def device(self) -> float:
        """What the card must have."""
        return self.peak + self.runtime


def need(sizes: TrainingSizes, run: TrainingRun) -> Need:
    """The memory of a step of `run`."""
    of, keeps, split = run.numbers, run.keeps, run.gpus if run.shard else 1
    trained = sizes.shape.parameters if run.trained is None else run.trained
    weight, gradient, moment = of.weight, of.gradient, of.moment
    frozen = 0.0
    if run.trained is not None:
        frozen = sizes.shape.parameters * (of.weight if run.precision != "master" else of.gradient) / split
        weight, gradient, moment = ADAPTER["weight"], ADAPTER["gradient"], ADAPTER["moment"]
    weights = frozen + trained * weight / split
    states = trained * (keeps.moments * moment + keeps.n_bytes) / split
    gradients = trained * gradient / split
    gathered = _gathered_bytes(sizes, run) if run.shard and run.gpus > 1 else 0.0
    buckets = gradients if run.gpus > 1 and not run.shard else 0.0
    always = weights + states + buckets + gathered
    saved, pinned = _saved(sizes, run)
    head, head_gradient = _head_bytes(sizes, run)
    layer = moments(sizes, run)
    if not run.checkpointing:  # what its layers hold in backward is counted in `saved`
        layer = {name: max(0.0, size - saved_bytes(sizes, run)) for name, size in layer.items()}
    # what the last layer has kept of its attention is in its backward's moments
    before = saved - (kept_bytes(sizes, run) if run.remat and not run.keep_on_host else 0.0)
    widest, most = max(layer.items(), key=lambda one: one[1])
    ends = {
        "head": (always + saved, head),
        f"{widest} of the last layer": (always + head_gradient + before, most),
        f"{widest} of the first layer": (always + gradients, most),
        "optimizer": (always + gradients, trained * keeps.step * moment / split),
    }
    name, (held, moment_bytes) = max(ends.items(), key=lambda one: sum(one[1]))
    return Need(
        weights=weights + gathered,
        states=states,
        gradients=gradients + buckets,
        saved=saved,
        moment=moment_bytes,
        widest=name,
        peak=held + moment_bytes,
        runtime=RUNTIME_BYTES,
        pinned=pinned * run.gpus / run.hosts,
    )


def _saved(sizes: TrainingSizes, run: TrainingRun) -> tuple[float, float]:
    """From forward to backward on the device, and pinned on the host.

    Copies run in the stream that computes, so none waits on the device; one that comes back is the layer's own.
    """
    layers, hidden, kept = sizes.shape.n_layers, hidden_bytes(sizes, run), kept_bytes(sizes, run)
    if not run.checkpointing:
        return layers * saved_bytes(sizes, run), 0.0
    saved, pinned = (0.0, layers * pinned_bytes(hidden)) if run.offload else (layers * hidden, 0.0)
    if run.remat and run.keep_on_host:
        pinned += layers * kept
    elif run.remat:
        saved += layers * kept
    return saved, pinned


def _head_bytes(sizes: TrainingSizes, run: TrainingRun) -> tuple[float, float]:
    """Of the head and its loss, and of its gradient, which is there from then on."""
    of, matrix = run.numbers, sizes.shape.lm_head
    # autocast keeps its copies of all weights until the forward's end, and the head's until the head's backward
    copies, copy = of.cast * sizes.shape.parameters, of.cast * matrix
    hidden = (of.norm + 2 * of.residual) * sizes.shape.hidden * run.rows  # the last norm and its output's gradient
    gradient = 0.0 if run.trained is not None else of.gradient * matrix
    if not run.chunked_loss:  # logits twice and log-probabilities; then these and gradients of two kinds, in fp32
        logits = sizes.shape.vocab * run.rows
        return hidden + max(copies + (of.activation + 8.0) * logits, copy + 12.0 * logits), gradient
    # the same of a chunk, and in backward fp32 sums of the head's gradient and a chunk's
    logits = (of.activation + 8.0) * sizes.shape.vocab * min(CHUNK, run.rows)
    sums = 0.0 if run.trained is not None else (4 + of.activation) * matrix
    return hidden + logits + max(copies, copy + sums), gradient


def _gathered_bytes(sizes: TrainingSizes, run: TrainingRun) -> float:
    """What FSDP2 has whole: embedding and head all the time, two layers, and the gradients of one and of the head."""
    a = run.numbers.activation
    return a * (sizes.outside + 2 * sizes.layer) + run.numbers.gradient * (sizes.outside + sizes.layer)
