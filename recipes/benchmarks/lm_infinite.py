"""LM-Infinite beside stock, each part in one run: speed and perplexity on one GPU, passkey on any device.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.lm_infinite speed|perplexity|passkey|layers --documents DOCS
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import LMInfinite, attend
from hf_longctx.evaluation.passkey import passkey_grid
from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.rows import row
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call
from hf_longctx.ops.layout import rotary_layout
from hf_longctx.ops.masks import BeyondWindow, Causal, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.rotation import Rotation
from hf_longctx.upstream.caches import given_cache

from .reading import TRAINED, K, arguments, cache_bytes, finish, nll_detail, ratios, spans, subject
from .timing import milliseconds, peak_gib

PARTS = ("speed", "perplexity", "passkey", "layers")


def attention(model: Any) -> Iterator[dict[str, Any]]:
    """One layer's attention, 128k tokens of prefill, SmolLM2's heads, rotation of queries and keys included."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    L, size, H, G, D = 128 * K, 4 * K, 9, 3, 64
    q, k, v = (torch.randn(1, L, h, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for h in (H, G, G))
    pos = torch.arange(L, device="cuda")[None]
    everywhere = Positions(pos, pos, same_rows=True, consecutive=True, padded=False)
    cos, sin = model.model.rotary_emb(q, pos)
    rope = Rotation(cos, sin, rotary_layout(apply_rotary_pos_emb))
    far = Rotation(cos[:, :1], sin[:, :1], rotary_layout(apply_rotary_pos_emb))

    def ours() -> Tensor:
        local = Branch(q, k, v, everywhere, Window(size), rope, rope)
        first = Positions(pos, pos[:, :10], padded=False)
        sinks = Branch(q, k[:, :, :10], v[:, :, :10], first, BeyondWindow(size), k_rope=far)
        return attend([local, sinks], scale=D**-0.5)

    def torch_flash() -> Any:
        return KERNELS["cuda_flash"].forward(Call(everywhere, Causal(), D**-0.5), q, k, v)

    def dispatched() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    mine, flash, stock = milliseconds(ours), milliseconds(torch_flash, runs=5), milliseconds(dispatched, runs=5)
    what = "attention of one layer, 128k prefill, 4k window, 9/3 heads d64: times faster than"
    for name, bar, other in (("torch flash", ">= 10", flash), ("what stock dispatches to (cuDNN)", ">= 7", stock)):
        yield row(f"{what} {name}", other / mine, "x", bar=bar, beside=_beside(f"{mine:.2f} ms", f"{other:.1f} ms"))


def prefill(model: Any, ids: Tensor) -> Iterator[dict[str, Any]]:
    """The whole model reading 128k tokens, logits of the last only."""
    ids = ids[None, : 128 * K].cuda()

    @torch.no_grad()
    def run(chunk: int) -> None:
        cache = DynamicCache(config=model.config)
        for piece in ids.split(chunk, dim=1):
            model(piece, **given_cache(model, cache), use_cache=True, logits_to_keep=1)

    beside: dict[str, float] = {}
    stock_ms, stock_peak = milliseconds(lambda: run(128 * K), runs=3, warm_up=1), peak_gib(lambda: run(128 * K))
    beside["stock, s"], beside["stock, GiB"] = stock_ms / 1e3, stock_peak
    beside["stock in chunks of 16k, s"] = milliseconds(lambda: run(16 * K), runs=3, warm_up=1) / 1e3
    beside["stock in chunks of 16k, GiB"] = peak_gib(lambda: run(16 * K))
    with LMInfinite(n_local=4 * K).on(model):
        for chunk in (8 * K, 16 * K, 32 * K, 128 * K):
            beside[f"LM-Infinite in chunks of {chunk // K}k, s"] = milliseconds(lambda c=chunk: run(c), runs=5) / 1e3
            beside[f"LM-Infinite in chunks of {chunk // K}k, GiB"] = peak_gib(lambda c=chunk: run(c))
    mine, mine_peak = (beside[f"LM-Infinite in chunks of 32k, {unit}"] for unit in ("s", "GiB"))
    what = "whole model, 128k prefill, 4k window, chunks of 32k:"
    seconds = _beside(f"{mine:.3f} s", f"{beside['stock, s']:.3f} s")
    yield row(f"{what} times faster", beside["stock, s"] / mine, "x", bar=">= 3.5", beside=seconds, detail=beside)
    memory = _beside(f"{mine_peak:.2f} GiB", f"{stock_peak:.2f} GiB")
    yield row(f"{what} peak memory above the weights, share", mine_peak / stock_peak, "", bar="<= 0.2", beside=memory)


def perplexity(model: Any, documents: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The same last 1,024 tokens of every document: the last 8k alone for stock, 64k and 200k for LM-Infinite."""
    texts = spans(documents, 200 * 1000)
    stock = fixed_targets(model, list(texts.values()), [TRAINED])[0]
    with LMInfinite(n_local=TRAINED).on(model):
        ours = fixed_targets(model, list(texts.values()), [TRAINED, 64 * K, 200 * 1000], chunk=32 * K)
    for score in ours:
        each = ratios(texts, score.nll, stock.nll)
        bar = "<= 1.005" if score.length > TRAINED else None
        what = f"after {score.length:,} tokens, 8k window, {len(texts)} documents"
        yield row(
            what,
            fmean(each.values()),
            "",
            bar=bar,
            beside=_perplexities(score, stock),
            detail=nll_detail(texts, score, stock),
        )
    few = dict(list(texts.items())[::4])
    some = [score for name, score in zip(texts, stock.nll, strict=True) if name in few]
    broken = fixed_targets(model, list(few.values()), [2 * TRAINED, 64 * K], chunk=64 * K)
    for score in broken:
        ratio = fmean(ratios(few, score.nll, some).values())
        yield row(f"stock itself after {score.length:,} tokens, {len(few)} of the documents", ratio, "")


def million(model: Any, documents: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """After a million tokens of real text."""
    texts = spans(documents, 10**6)
    stock = fixed_targets(model, list(texts.values()), [TRAINED])[0]
    with LMInfinite(n_local=TRAINED).on(model):
        score = fixed_targets(model, list(texts.values()), [10**6], chunk=32 * K)[0]
        sizes = [cache_bytes(model, next(iter(texts.values()))[:n]) for n in (64 * K, 10**6)]
    each = ratios(texts, score.nll, stock.nll)
    what = f"after 1,000,000 tokens, 8k window, {len(texts)} documents"
    yield row(
        what,
        fmean(each.values()),
        "",
        bar="<= 1.01",
        beside=_perplexities(score, stock),
        detail=nll_detail(texts, score, stock),
    )
    what, sized = "KV bytes after 1,000,000 tokens over those after 64k", {"bytes at 64k, at 1,000,000": sizes}
    yield row(what, sizes[1] / sizes[0], "", bar="== 1", detail=sized)


def passkey(model: Any, tokenizer: Any, window: int, every: int, trials: int) -> Iterator[dict[str, Any]]:
    """Retrieval beyond an emulated window: top-k against truncation, accuracy inside the window beside."""
    depths, factors = [i / 9 for i in range(0, 10, every)], (1.5, 2, 3, 4)

    def cells(name: str, length: int, **more: Any) -> list[float]:
        grid = passkey_grid(
            model, tokenizer, lengths=[length], depths=depths, trials=trials, batch_size=2 * trials, **more
        )
        print(f"{name}, {length} tokens: {[cell.correct for cell in grid]} of {trials}", flush=True)
        return [cell.accuracy for cell in grid]

    inside = cells("stock inside the window", window)
    with LMInfinite(n_local=window, top_k=5).on(model):
        ours = {factor: cells("top_k=5", int(factor * window)) for factor in factors}
    truncated = {factor: cells("truncated", int(factor * window), keep_last=window - 8) for factor in factors}
    what = f"accuracy inside the window of {window:,} tokens (stock)"
    yield row(what, fmean(inside), "", beside={"stock, truncated": "–"})
    for factor in factors:
        beside = {"stock, truncated": fmean(truncated[factor])}
        yield row(f"accuracy at {factor:g} times the window, top_k=5", fmean(ours[factor]), "", beside=beside)
    ratio = fmean(map(fmean, ours.values())) / fmean(map(fmean, truncated.values()))
    detail = {"depths": depths, "trials": trials, "top_k=5": ours, "truncated": truncated, "inside": inside}
    what = f"mean accuracy over truncation's, {len(depths)} depths, {trials} prompts per cell"
    yield row(what, ratio, "x", bar=">= 1.85", detail=detail)


def layers(model: Any, tokenizer: Any, window: int) -> Iterator[dict[str, Any]]:
    """From which layer on looking up finds most; other prompts than `passkey`'s."""
    depths, factors, trials = [i / 9 for i in range(10)], (2, 3, 4), 4
    for first in (0, 2, 4, 6, 8, 12):
        found = {}
        with LMInfinite(n_local=window, top_k=5, top_k_from_layer=first).on(model):
            for factor in factors:
                lengths = [factor * window]
                grid = passkey_grid(
                    model, tokenizer, lengths=lengths, depths=depths, trials=trials, batch_size=40, seed=7
                )
                found[factor] = [cell.correct for cell in grid]
        share = {f"at {factor} times": sum(correct) / (trials * len(depths)) for factor, correct in found.items()}
        what = f"passkeys found, top_k=5, top_k_from_layer={first}, window {window:,}"
        detail = {"depths": depths, "trials": trials, "seed": 7, "correct": found}
        yield row(what, fmean(share.values()), "", beside=share, detail=detail)


def _beside(mine: str, stock: str) -> dict[str, str]:
    return {"LM-Infinite": mine, "stock": stock}


def _perplexities(score: Any, stock: Any) -> dict[str, float]:
    return {"perplexity": score.perplexity, "stock, last 8k only": stock.perplexity}


def main() -> None:
    """Run one part and write its result file."""
    parser = arguments(__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--window", type=int, default=2 * K, help="the passkey part's emulated window, tokens")
    parser.add_argument("--every", type=int, default=1, help="passkey: read every n-th of the ten depths")
    parser.add_argument("--trials", type=int, default=20, help="passkey: prompts per cell")
    args = parser.parse_args()
    if args.part in ("speed", "perplexity") and not args.documents:
        parser.error("this part reads texts: python -m recipes.benchmarks.documents DIR, then --documents DIR")
    model, tokenizer, documents = subject(args)
    match args.part:
        case "speed":
            rows = chain(attention(model), prefill(model, next(iter(documents.values()))))
        case "perplexity":
            rows = chain(perplexity(model, documents), million(model, documents))
        case "layers":
            rows = chain(layers(model, tokenizer, args.window))
        case _:
            rows = chain(passkey(model, tokenizer, args.window, args.every, args.trials))
    finish(model, rows, args, f"lm_infinite_{args.part}")


if __name__ == "__main__":
    main()
