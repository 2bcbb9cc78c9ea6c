"""What a machine can do at best, and the share of it that is reached: every constant that was measured is here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..console.units import GIB
from ..near import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Peak numbers of data sheets: dense matmuls in bf16 or fp16 and in fp32 (no TF32), and memory bandwidth."""

    name: str
    memory_bytes: int | None
    tflops: float
    tflops_fp32: float
    bandwidth_gb_s: float
    graphs: bool = True  # CUDA graphs

    def peak_flops(self, dtype_bytes: int) -> float:
        """FLOP/s of dense matmuls in a dtype of this size."""
        return 1e12 * (self.tflops if dtype_bytes == 2 else self.tflops_fp32)


# NVIDIA's data sheets (H100 and H200 SXM5, A100 80GB SXM, L4, Ada whitepaper). Of these only the H100 is calibrated.
# cpu is a desktop's order of magnitude: pass --tflops and --bandwidth for yours.
MACHINES = {
    "h100": Machine(
        name="h100", memory_bytes=80 * 10**9, tflops=989, tflops_fp32=67, bandwidth_gb_s=3350
    ),
    "h200": Machine(name="h200", memory_bytes=141 * 10**9, tflops=989, tflops_fp32=67, bandwidth_gb_s=4800),
    "a100": Machine(name="a100", memory_bytes=80 * 10**9, tflops=312, tflops_fp32=19.5, bandwidth_gb_s=2039),
    "l4": Machine(name="l4", memory_bytes=24 * 10**9, tflops=121, tflops_fp32=30.3, bandwidth_gb_s=300),
    "rtx4090": Machine(name="rtx4090", memory_bytes=24 * 10**9, tflops=165, tflops_fp32=82.6, bandwidth_gb_s=1008),
    "cpu": Machine(name="cpu", memory_bytes=None, tflops=0.2, tflops_fp32=0.5, bandwidth_gb_s=40, graphs=False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Shares of peak, and what the host costs. From one H100 and its host, SmolLM2-135M in bf16, torch 2.11.

    `tests/planning/test_calibration.py` compares the predictions with what was measured, within a factor of 1.5.

    Args:
        matmul: Large bf16 matmuls (8192 cubed: about 790 of 989 TFLOP/s), somewhat less for flat ones.
        bandwidth: What element-wise kernels reach.
        causal_attention: SDPA without a mask (cuDNN at 128k, 9/3 heads of 64: 465 of 989 TFLOP/s).
        window_attention: The window kernel with its rotations and first tokens (3.69 ms per layer at 128k, window 4k).
        masked_attention: SDPA with a mask, which stock needs for every chunk but the first.
        eager_attention: Attention that writes its scores (models with softcap or sinks). Not measured.
        read_launch_s, method_launch_s: Host seconds per layer and forward, stock and under an attention method.
        decode_eager_s: Host seconds per layer and token in `generate`.
        decode_graph_s: Seconds per layer and token of a replayed graph: the latency of its small kernels.
        lookup_graph_s: The same of a look-up's: 16 to 18 of them, at about 3 microseconds. Calculated, not measured.
        lookup_block_s: Host seconds to score and choose for one block of queries in one layer (top_k). Not measured.
        runtime_bytes: What the CUDA context and libraries take beside torch's own memory. Not measured here.
    """

    matmul: float = 0.75
    bandwidth: float = 0.78
    causal_attention: float = 0.46
    window_attention: float = 0.34
    masked_attention: float = 0.19
    eager_attention: float = 0.05
    read_launch_s: float = 0.95e-3
    method_launch_s: float = 2.4e-3
    decode_eager_s: float = 2.4e-3
    decode_graph_s: float = 80e-6
    lookup_graph_s: float = 50e-6
    lookup_block_s: float = 0.25e-3
    runtime_bytes: int = GIB // 2


H100_HOST = Calibration()


def find_machine(gpu: str, tflops: float | None = None, bandwidth_gb_s: float | None = None) -> Machine:
    """The machine called `gpu`, with other peak numbers where given. ValueError lists what there is."""
    if gpu.lower() not in MACHINES:
        raise ValueError(
            f"gpu={gpu!r}: not known here. {did_you_mean(gpu, MACHINES)}There are: {', '.join(MACHINES)}. For "
            f"another one take the nearest and give its numbers with --tflops and --bandwidth."
        )
    machine = MACHINES[gpu.lower()]
    for name, value in (("tflops", tflops), ("bandwidth", bandwidth_gb_s)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: expected a number above 0, from the data sheet (TFLOP/s or GB/s).")
    if tflops is not None:
        # fp32 is scaled alike: one number is what a user has at hand
        name = f"{machine.name} at {tflops:g} TFLOP/s"
        fp32 = machine.tflops_fp32 * tflops / machine.tflops
        machine = dataclasses.replace(machine, name=name, tflops=tflops, tflops_fp32=fp32)
    if bandwidth_gb_s is not None:
        name = f"{machine.name} at {bandwidth_gb_s:g} GB/s"
        machine = dataclasses.replace(machine, name=name, bandwidth_gb_s=bandwidth_gb_s)
    return machine
