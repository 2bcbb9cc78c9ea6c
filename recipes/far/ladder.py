"""The memory ladder, a rung at a time: GiB of the card, beside what the formula says, and of the host; tokens/s.

python -m recipes.far.ladder              # --tokens 128k; --fp32: fp32 weights under autocast; --smoke: on a CPU
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from hf_longctx import TrainingMemory
from hf_longctx.evaluation.rows import row
from hf_longctx.planning.shape import build
from hf_longctx.planning.train import TrainingRun, need
from hf_longctx.planning.train.sizes import sizes_of
from recipes.benchmarks.reading import K, finish, lengths
from recipes.outs import RESULT_OPTION

from .predicted import SHARE
from .steps import GIB, Rungs, config_of, no_more_than, trained

CHUNKED: dict[str, Any] = {"chunked_loss": True, "tile": None}
FUSED: dict[str, Any] = {"tile": 8192, "fused_norms": True}
# each with the rungs before it
LADDER = {
    "stock transformers, checkpointing": Rungs(switch=False),
    "+ loss in chunks": Rungs(TrainingMemory(**CHUNKED), switch=False),
    "+ attention through SequenceParallel(degree=1)": Rungs(TrainingMemory(**CHUNKED)),
    "+ MLP in tiles of 8,192": Rungs(TrainingMemory(tile=8192)),
    "+ fused norms": Rungs(TrainingMemory(**FUSED)),
    "+ hidden states on the host": Rungs(TrainingMemory(**FUSED), hidden=True),
    "+ attention kept": Rungs(TrainingMemory(**FUSED, remat="attention"), hidden=True),
    "+ kept on the host": Rungs(TrainingMemory(**FUSED, remat="attention", offload=True), hidden=True),
}


def run_of(rungs: Rungs, tokens: int, precision: str) -> TrainingRun:
    """The same run for the formula."""
    memory = TrainingMemory(**CHUNKED) if rungs.memory is None else rungs.memory
    return TrainingRun(
        tokens=tokens, precision=precision, offload=rungs.hidden, chunked_loss=rungs.memory is not None,
        tile=memory.tile, remat=memory.remat, keep_on_host=memory.offload, fused_norms=memory.fused_norms,
        kind="auto" if rungs.switch else "stock",
    )  # fmt: skip


def measured(size: str, tokens: int, fp32: bool, steps: int) -> Iterator[dict[str, Any]]:
    """A row for each rung, whose first step is not counted; then how far the formula is from them."""
    cuda = torch.cuda.is_available()
    sizes, precision = sizes_of(build(config_of(size))), ("mixed" if fp32 else "bf16") if cuda else "fp32"
    differences = []
    for name, rungs in LADDER.items():
        if rungs.memory is not None and rungs.memory.offload and not cuda:
            continue
        what = f"{size}, {tokens // K}k tokens, {'fp32 weights' if fp32 else 'all bf16'}: {name}"
        said = need(sizes, run_of(rungs, tokens, precision)).peak / GIB
        try:
            with trained(size, rungs, tokens, fp32) as model:
                took = [model.step() for _ in range(1 + steps)][1:]
        except torch.OutOfMemoryError:
            yield row(f"{what}, memory of the card", None, "GiB", why="out of memory", beside={"predicted GiB": said})
            continue
        assert all(step.finite for step in took), f"{what}: gradients are not finite"
        speed = tokens / median(step.seconds for step in took)
        card, host = (max(getattr(step, part) for step in took) for part in ("card", "host"))
        beside = {"predicted GiB": said, "tokens/s": speed, "GiB of the host": host}
        detail = {"seconds": [step.seconds for step in took], "tokens": tokens}
        yield row(f"{what}, memory of the card", card, "GiB", beside=beside, detail=detail)
        if card:
            differences.append(abs(said - card) / card)
    if differences:
        what = f"{size}, {tokens // K}k tokens: largest difference from the formula"
        yield row(what, max(differences), "", bar=f"<= {SHARE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lengths, default=[128 * K], help="one length or several (128k)")
    parser.add_argument("--steps", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument("--fp32", action="store_true", help="fp32 weights under autocast")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and 1k tokens")
    parser.add_argument("--card", type=float, help="GiB that torch may have of a card: 77 on a larger one is an H100")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    size, all_tokens, steps = ("tiny Llama", [K], 1) if args.smoke else ("Llama 1.24B", args.tokens, args.steps)
    no_more_than(args.card)
    rows = (found for tokens in all_tokens for found in measured(size, tokens, args.fp32, steps))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    finish(SimpleNamespace(device=device), rows, args, "far_ladder", label=f"{size}, random weights")


if __name__ == "__main__":
    main()
