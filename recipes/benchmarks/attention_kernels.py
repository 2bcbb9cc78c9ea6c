"""One layer's attention at 64k tokens of prefill with a cap and with sinks, by every kernel, on one GPU.

python -m recipes.benchmarks.attention_kernels          # --shape "Gemma 2 9B" --no-sweep: one shape, chosen tiles
"""

# H query heads, G key/value heads, L tokens, D head dim, V that of values
from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hf_longctx import attend
from hf_longctx.evaluation.rows import row
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call, choose
from hf_longctx.ops.masks import Causal, Mask, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.widths import widened
from recipes.outs import RESULT_OPTION

from .reading import K, finish
from .timing import milliseconds

L, CAP, BAR = 64 * K, 50.0, "<= 1.3"
SHAPES = {"Gemma 2 9B": (16, 8, 256, 256), "gpt-oss-20b": (64, 8, 64, 64), "MLA": (16, 16, 192, 128)}  # H, G, D, V
MASKS: dict[str, Mask] = {"causal": Causal(), "window 4,096": Window(4 * K)}
# the others take seconds at this length, or are no kernels of a prefill
NAMES = ("auto", "cudnn", "triton_window", "flash_attn", "cuda_flash")
TILES = ((128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 128, 8, 2))
BOUND = 2e-2  # relative to the norm: bf16 keeps 8 bits of the weights and of the output


def problem(shape: str, mask: Mask) -> Branch:
    """Random tensors, in the layout of a model's; scores are wide enough for the cap to be felt."""
    H, G, D, V = SHAPES[shape]
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, L, n, d, generator=generator, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for n, d in ((H, D), (G, D), (G, V))
    )
    pos = torch.arange(L, device="cuda")[None]
    return Branch(q.mul_(8), k, v, Positions(pos, pos, same_rows=True, consecutive=True, padded=False), mask)


def scale_of(branch: Branch) -> float:
    return float(branch.q_BHLD.shape[-1] ** -0.5)


def check(out_BLHV: Tensor, branch: Branch, softcap: float | None, sink_H: Tensor | None) -> None:
    """Some rows of the first and the last head, by the definition in float64."""
    H, group = branch.q_BHLD.shape[1], branch.q_BHLD.shape[1] // branch.k_BGSD.shape[1]
    rows = torch.cat([torch.arange(16), torch.arange(L // 2, L // 2 + 16), torch.arange(L - 16, L)]).cuda()
    size = branch.mask.size if isinstance(branch.mask, Window) else L
    distance = rows[:, None] - torch.arange(L, device="cuda")
    for h in (0, H - 1):
        scores = branch.q_BHLD[0, h, rows].double() @ branch.k_BGSD[0, h // group].double().T * scale_of(branch)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill((distance < 0) | (distance >= size), float("-inf"))
        if sink_H is not None:
            scores = torch.cat([scores, sink_H[h].double().expand(len(rows), 1)], 1)
        true = scores.softmax(-1)[:, :L] @ branch.v_BGSD[0, h // group].double()
        off = (out_BLHV[0, rows, h].double() - true).norm() / true.norm()
        assert off <= BOUND, f"off by {float(off):.1e} (relative)"


def refused(name: str, branch: Branch, softcap: float | None) -> str | None:
    """Why a kernel cannot do it; for auto, never."""
    if name == "auto":
        return None
    width = max(branch.q_BHLD.shape[-1], branch.v_BGSD.shape[-1])
    call = Call(branch.positions, branch.mask, scale_of(branch), softcap=softcap)
    return KERNELS[name].unsupported_reason(call, widened(branch.q_BHLD, width), widened(branch.k_BGSD, width))


def kernels(branch: Branch, settings: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds of every kernel, through `attend`, after a check of what it computes; and why others cannot."""
    took, why = {}, {}
    for name in NAMES:
        reason = refused(name, branch, settings.get("softcap"))
        if reason is not None:
            why[name] = reason
            continue
        run = lambda name=name: attend([branch], scale=scale_of(branch), kernel=name, **settings)  # noqa: E731
        check(run(), branch, settings.get("softcap"), settings.get("sink_H"))
        took[name] = milliseconds(run, runs=5, warm_up=1)
    return took, why


def sweep(branch: Branch, softcap: float | None) -> dict[str, float]:
    """Milliseconds of the Triton window by its tiles; those that do not fit the card are left out."""
    from hf_longctx.ops.kernels.triton_window import window_attention

    size = branch.mask.size if isinstance(branch.mask, Window) else L
    given: Any = branch.q_BHLD, branch.k_BGSD, branch.v_BGSD, size, scale_of(branch), softcap
    took = {}
    for tiles in TILES:
        run = lambda tiles=tiles: window_attention(*given, tiles)  # noqa: E731
        try:
            check(run()[0], branch, softcap, None)
        except Exception as error:  # Triton raises whatever it likes where shared memory is short
            print(f"    tiles {tiles}: {type(error).__name__}: {str(error)[:100]}", flush=True)
            continue
        took[str(tiles)] = milliseconds(run, runs=5, warm_up=1)
    return took


@torch.no_grad()
def measured(shapes: list[str], tiles: bool) -> Iterator[dict[str, Any]]:
    """A row for each shape, mask and term of the softmax: what auto takes, over the fastest kernel without the term."""
    for shape in shapes:
        sink = torch.randn(SHAPES[shape][0], device="cuda")
        for name, mask in MASKS.items():
            branch, what = problem(shape, mask), f"{shape}, {name}"
            call = Call(branch.positions, mask, scale_of(branch))
            plain, why = kernels(branch, {})
            fastest = min(plain.values())
            width = max(SHAPES[shape][2:])
            chosen = choose(call, widened(branch.q_BHLD, width), widened(branch.k_BGSD, width)).name
            show(what, plain, why, fastest)
            yield row(f"{what}: what auto takes ({chosen}) over the fastest", plain["auto"] / fastest, "", beside=plain)
            for term, settings in (("cap", {"softcap": CAP}), ("sinks", {"sink_H": sink})):
                took, why = kernels(branch, settings)
                show(f"{what}, {term}", took, why, fastest)
                yield row(f"{what}: with {term}, over the fastest", took["auto"] / fastest, "", bar=BAR, beside=took)
            if tiles:
                softcap = CAP if shape.startswith("Gemma") else None
                found = sweep(branch, softcap)
                show(f"{what}{', cap' if softcap else ''}, tiles", found, {}, fastest)
                yield row(f"{what}: Triton window, ms by tiles", min(found.values()), "ms", beside=found)
            del branch


def show(what: str, took: dict[str, float], why: dict[str, str], fastest: float) -> None:
    """A block of the table: milliseconds, and how many times the fastest kernel without cap and sinks."""
    print(f"\n{what}", flush=True)
    for name, value in sorted(took.items(), key=lambda item: item[1]):
        print(f"    {name:<20}{value:>9.2f} ms{value / fastest:>7.2f}x", flush=True)
    for name, reason in why.items():
        print(f"    {name:<20}{reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one of them; all by default")
    parser.add_argument("--no-sweep", action="store_true", help="leave the tiles of the Triton window as they are")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    rows = measured([args.shape] if args.shape else list(SHAPES), not args.no_sweep)
    label = "random tensors, bfloat16, 64k tokens"
    finish(SimpleNamespace(device="cuda"), rows, args, "attention_kernels", label=label)


if __name__ == "__main__":
    main()
