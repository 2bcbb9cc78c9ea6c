"""One whole step on the longest texts that a card, or several, train on.

python -m recipes.far.longest --lengths 512k,768k
torchrun --nproc_per_node 2 -m recipes.far.longest --lengths 1M --kept
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from hf_longctx import TrainingMemory
from hf_longctx.evaluation.rows import row
from hf_longctx.training.processes import is_first, joined
from recipes.benchmarks.reading import K, lengths, results_of
from recipes.benchmarks.saving import Saved
from recipes.outs import RESULT_OPTION, result_path

from .steps import Rungs, no_more_than, trained


def measured(size: str, all_tokens: list[int], kept: bool, fp32: bool) -> Iterator[dict[str, Any]]:
    """A row for each length, the shortest first: one step, without a warm-up."""
    cuda = torch.cuda.is_available()
    memory = TrainingMemory(tile=8192, fused_norms=True, remat="attention" if kept else None, offload=kept and cuda)
    cards = dist.get_world_size() if dist.is_initialized() else 1
    for tokens in sorted(all_tokens):
        state = f"{'fp32 weights' if fp32 else 'all bf16'}, fused norms"
        long = f"{tokens:,}" if tokens % K else f"{tokens // K}k"
        what = f"{size}, {long} tokens in one step on {cards} card{'s' * (cards > 1)}, {state}: memory of a card"
        try:
            with trained(size, Rungs(memory, hidden=True), tokens, fp32) as model:
                step = model.step()
        except torch.OutOfMemoryError:
            yield row(what, None, "GiB", why="out of memory")
            return
        beside = {"seconds": step.seconds, "GiB of the host, a card": step.host, "tokens/s": tokens / step.seconds}
        detail = {"tokens": tokens, "cards": cards, "kept attention": kept, "finite gradients": step.finite}
        why = None if step.finite else "gradients are not finite"
        yield row(what, step.card if step.finite else None, "GiB", why=why, beside=beside, detail=detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=lengths, default=[512 * K, 768 * K], help="512k,768k")
    parser.add_argument("--kept", action="store_true", help="attention is kept from recomputation, on the host")
    parser.add_argument("--fp32", action="store_true", help="fp32 weights under autocast")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 1k and 2k tokens")
    parser.add_argument("--card", type=float, help="GiB that torch may have of a card: 77 on a larger one is an H100")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    size, tokens = ("tiny Llama", [K, 2 * K]) if args.smoke else ("Llama 1.24B", args.lengths)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with joined() as ranks:
        no_more_than(args.card)
        rows = measured(size, tokens, args.kept, args.fp32)
        if is_first():
            name = "_".join(
                ["far_longest", *(["fp32"] if args.fp32 else []), *([f"{ranks}_cards"] if ranks > 1 else [])]
            )
            file = result_path(results_of(args), name)
            Saved(file, f"{size}, random weights", device, args.commit, cards=ranks).add(rows)
        else:
            list(rows)


if __name__ == "__main__":
    main()
