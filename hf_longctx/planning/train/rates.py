"""How fast a card computes a training step: every constant of time that was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingRates:
    """Shares of peak, links, and what the host costs. From steps of a 1.24B Llama and of SmolLM2-135M on H100s.

    Hosts differ: a layer took 6.0 ms on that of an H100 and 4.8 ms on that of an H200, by SmolLM2 at 8k.

    Args:
        matmul: Of a whole step's linear maps (a single large one reaches 0.75).
        attention, attention_backward: cuDNN's, 32/8 heads of 64.
        bandwidth: What element-wise kernels reach.
        link_gb_s, link_s: Of one exchange between cards over NVLink: rate in one direction, and what it takes at least.
        host_gb_s: Between a card and pinned memory of its host.
        launch_s: Host seconds of a layer in a step with recomputation; `launch_once_s` without.
        tile_s: What the small kernels of a tile of an MLP take longer, forward and backward together.
        between_s: Host seconds between two steps, in which the card waits.
    """

    matmul: float = 0.657
    attention: float = 0.470
    attention_backward: float = 0.376
    bandwidth: float = 0.776
    link_gb_s: float = 230.0
    link_s: float = 0.1e-3
    host_gb_s: float = 50.0
    launch_s: float = 5.4e-3
    launch_once_s: float = 4.5e-3
    tile_s: float = 0.3e-3
    between_s: float = 10e-3


H100_TRAINING = TrainingRates()
