"""Attention of one layer over 64k tokens in packed documents, forward and backward, by every kernel, on one GPU.

python -m recipes.benchmarks.packed_attention          # --shape "9/3 heads of 64": one of the shapes

Each kernel is checked against PyTorch's own attention of each document, values and gradients, before it is timed.
cuDNN builds a graph for every new length: documents that no call has seen before have a row of their own.
"""

# H query heads, G key/value heads, L tokens, D head dim
from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hf_longctx.evaluation.rows import row
from hf_longctx.ops.kernels import KERNELS, Call, choose
from hf_longctx.ops.masks import DOCUMENT, Causal, Mask, Packed, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.segments import segments
from recipes.outs import RESULT_OPTION

from .reading import K, finish
from .timing import milliseconds

L, D = 64 * K, 64
SHAPES = {"32/8 heads of 64": (32, 8), "9/3 heads of 64": (9, 3)}
PACKS = {
    "ten documents of different lengths": [3001, 4107, 4888, 5213, 5999, 6500, 7001, 8123, 9204, 11500],
    "eight documents of 8k": [8 * K] * 8,
    "one document": [L],
    "256 documents of 256": [256] * 256,
}
MASKS: dict[str, Mask] = {"causal": Causal(), "window 1,024": Window(K)}
NAMES = ("cudnn", "triton_window", "flash_attn", "cuda_flash")
SLOW = "blocked"  # seconds: for the first pack only
BOUND = 2e-2  # relative to the norm: two kernels that each keep 8 bits of the weights, the output and the gradients
MOST = 1.1  # what auto takes, over the fastest: the choice costs a tenth at most
BLOCK = 8 * K
WAYS = "forward ms", "backward ms"
WHY = "auto does not take cuDNN for many different lengths: it builds a graph for each, see the row of unseen lengths"


def problem(shape: str, lengths: list[int]) -> tuple[Positions, list[Tensor]]:
    """Positions with their segments; random q, k, v and the output's gradient, in the layout of a model's."""
    generator = torch.Generator("cuda").manual_seed(0)
    H, G = SHAPES[shape]
    drawn = [
        torch.randn(1, sum(lengths), n, D, generator=generator, device="cuda", dtype=torch.bfloat16)
        for n in (H, G, G, H)
    ]
    codes = [number * DOCUMENT + torch.arange(length) for number, length in enumerate(lengths)]
    pos = torch.cat(codes).cuda()[None]
    rows = segments([(length, length) for length in lengths], "cuda")
    positions = Positions(pos, pos, same_rows=True, consecutive=True, padded=False, segments=rows, memo={})
    return positions, [*(x.transpose(1, 2) for x in drawn[:3]), drawn[3]]


def truth(lengths: list[int], mask: Mask, tensors: list[Tensor]) -> list[Tensor]:
    """PyTorch's attention of each document alone, with its gradients; windows in blocks of queries."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    outs = []
    for q, k, v in zip(*(x.split(lengths, 2) for x in leaves), strict=True):
        if not isinstance(mask, Window):
            outs.append(sdpa(q, k, v, None, is_causal=True))
            continue
        for start in range(0, q.shape[2], BLOCK):
            end, first = min(start + BLOCK, q.shape[2]), max(start - mask.size + 1, 0)
            distance = torch.arange(start, end, device="cuda")[:, None] - torch.arange(first, end, device="cuda")
            seen = (distance >= 0) & (distance < mask.size)
            outs.append(sdpa(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], seen))
    out = torch.cat(outs, 2).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


def sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, is_causal: bool = False) -> Tensor:
    """Keys and values repeated, so that every version of PyTorch has a fast kernel with gradients."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, is_causal=is_causal)


def off(mine: Tensor, true: Tensor) -> float:
    return float((mine.double() - true.double()).norm() / true.double().norm())


def both(name: str, call: Call, tensors: list[Tensor]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A kernel's forward and its backward, as they run behind `attend`."""
    q, k, v, grad = tensors
    out, lse = KERNELS[name].forward(call, q, k, v)
    return lambda: KERNELS[name].forward(call, q, k, v), lambda: KERNELS[name].backward(call, grad, q, k, v, out, lse)


def timed(name: str, call: Call, tensors: list[Tensor], true: list[Tensor]) -> tuple[float, float]:
    """Milliseconds of forward and backward, after a check of both."""
    forward, backward = both(name, call, tensors)
    for what, mine, other in zip(("out", "dq", "dk", "dv"), (forward()[0], *backward()), true, strict=True):
        assert off(mine, other) <= BOUND, f"{name}: {what} is off by {off(mine, other):.1e} (relative)"
    runs = 1 if name == SLOW else 5
    return milliseconds(forward, runs=runs, warm_up=1), milliseconds(backward, runs=runs, warm_up=1)


def unseen(name: str, shape: str, seed: int) -> float:
    """Seconds of the first forward and backward over ten documents whose lengths no call has had before."""
    rng = random.Random(seed)
    lengths = [2 * K + 2 * rng.randrange(4 * K) + 1 for _ in range(10)]
    positions, tensors = problem(shape, lengths)
    call = Call(positions, Packed(), D**-0.5)
    torch.cuda.synchronize()
    start = time.perf_counter()
    _, backward = both(name, call, tensors)
    backward()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(shapes: list[str]) -> Iterator[dict[str, Any]]:
    """What auto takes over the fastest, for every shape, pack and mask; then what lengths cost that are new."""
    for shape in shapes:
        for pack, lengths in PACKS.items():
            for inside, mask in MASKS.items():
                positions, tensors = problem(shape, lengths)
                call = Call(positions, Packed(mask), D**-0.5)
                true = truth(lengths, mask, tensors)
                took, why = {}, {}
                for name in (*NAMES, SLOW) if lengths is next(iter(PACKS.values())) else NAMES:
                    reason = KERNELS[name].unsupported_reason(call, *tensors[:2])
                    if reason is not None:
                        why[name] = reason
                        continue
                    took[name] = timed(name, call, tensors, true)
                    print(f"{shape}, {pack}, {inside}: {name} {took[name][0]:.2f} + {took[name][1]:.2f} ms", flush=True)
                sums = {name: sum(pair) for name, pair in took.items()}
                chosen = choose(call, *tensors[:2]).name
                what = f"{shape}, {pack}, {inside}: what auto takes ({chosen}) over the fastest"
                steps = {
                    f"{name}, {way}": ms for name, pair in took.items() for way, ms in zip(WAYS, pair, strict=True)
                }
                late = None if sums[chosen] <= MOST * min(sums.values()) else WHY
                detail = {"lengths": lengths, "refused": why}
                yield row(
                    what, sums[chosen] / min(sums.values()), "", bar=f"<= {MOST}", why=late, beside=steps, detail=detail
                )
                del positions, tensors, call, true
        first = {name: [unseen(name, shape, seed) for seed in (1, 2, 3)] for name in ("cuda_flash", "cudnn")}
        what = f"{shape}: first forward and backward over ten documents of unseen lengths, cudnn, median of three packs"
        beside = {"cuda_flash": sorted(first["cuda_flash"])[1]}
        yield row(what, sorted(first["cudnn"])[1], "s", beside=beside, detail={"seconds": first})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one of them; all by default")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    rows = measured([args.shape] if args.shape else list(SHAPES))
    finish(SimpleNamespace(device="cuda"), rows, args, "packed_attention", label="random tensors, bfloat16, 64k tokens")


if __name__ == "__main__":
    main()
