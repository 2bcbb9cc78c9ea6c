"""LM-Infinite beside stock, each part in one run: speed and perplexity on one GPU, passkey on any device.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.lm_infinite --documents DOCS [--parts attention,prefill,perplexity,million,passkey]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import LMInfinite, attend
from hf_longctx.attention.branches import Branch, Causal, Outside, Window
from hf_longctx.attention.kernels import KERNELS, Call
from hf_longctx.attention.rotation import Rotation
from hf_longctx.checkpoints import load
from hf_longctx.evaluation.passkey import passkey_cell
from hf_longctx.evaluation.perplexity import fixed_targets
from hf_longctx.evaluation.results import results, row, write_results

from .timing import milliseconds, peak_gib

K = 1024
TRAINED = 8 * K
RESULTS = Path(__file__).parent / "results"
PARTS = ("speed", "perplexity", "passkey")


def attention(model: Any) -> Iterator[dict[str, Any]]:
    """One layer's attention, 128k tokens of prefill, SmolLM2's heads, rotation of queries and keys included."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    L, size, H, G, D = 128 * K, 4 * K, 9, 3, 64
    q, k, v = (torch.randn(1, L, h, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for h in (H, G, G))
    pos = torch.arange(L, device="cuda")[None]
    cos, sin = model.model.rotary_emb(q, pos)
    rope = Rotation(cos, sin, apply_rotary_pos_emb)
    far = Rotation(cos[:, :1], sin[:, :1], apply_rotary_pos_emb)

    def ours() -> Tensor:
        local = Branch(q, k, v, pos, pos, Window(size), rope, rope, regular=True, padded=False)
        sinks = Branch(q, k[:, :, :10], v[:, :, :10], pos, pos[:, :10], Outside(size), k_rope=far, padded=False)
        return attend([local, sinks], scale=D**-0.5)

    def torch_flash() -> Any:
        return KERNELS["cuda_flash"].forward(Call(pos, pos, Causal(), D**-0.5, True, False), q, k, v)

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
            model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)

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
        ratios = _ratios(texts, score.nll, stock.nll)
        bar = "<= 1.005" if score.length > TRAINED else None
        what = f"after {score.length:,} tokens, 8k window, {len(texts)} documents"
        yield row(
            what,
            fmean(ratios.values()),
            "",
            bar=bar,
            beside=_perplexities(score, stock),
            detail=_nll(texts, score, stock),
        )
    few = dict(list(texts.items())[::4])
    some = [score for name, score in zip(texts, stock.nll, strict=True) if name in few]
    broken = fixed_targets(model, list(few.values()), [2 * TRAINED, 64 * K], chunk=64 * K)
    for score in broken:
        ratio = fmean(_ratios(few, score.nll, some).values())
        yield row(f"stock itself after {score.length:,} tokens, {len(few)} of the documents", ratio, "")


def million(model: Any, documents: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """After a million tokens of real text."""
    texts = spans(documents, 10**6)
    stock = fixed_targets(model, list(texts.values()), [TRAINED])[0]
    with LMInfinite(n_local=TRAINED).on(model):
        score = fixed_targets(model, list(texts.values()), [10**6], chunk=32 * K)[0]
        sizes = [cache_bytes(model, next(iter(texts.values()))[:n]) for n in (64 * K, 10**6)]
    ratios = _ratios(texts, score.nll, stock.nll)
    what = f"after 1,000,000 tokens, 8k window, {len(texts)} documents"
    yield row(
        what,
        fmean(ratios.values()),
        "",
        bar="<= 1.01",
        beside=_perplexities(score, stock),
        detail=_nll(texts, score, stock),
    )
    what, sized = "KV bytes after 1,000,000 tokens over those after 64k", {"bytes at 64k, at 1,000,000": sizes}
    yield row(what, sizes[1] / sizes[0], "", bar="== 1", detail=sized)


def spans(documents: dict[str, Tensor], length: int, most: int = 5) -> dict[str, Tensor]:
    """Up to `most` non-overlapping spans of `length` tokens from every text, from its start on."""
    return {
        f"{name} {i}": ids[i * length : (i + 1) * length]
        for name, ids in documents.items()
        for i in range(min(len(ids) // length, most))
    }


@torch.no_grad()
def cache_bytes(model: Any, ids: Tensor) -> int:
    """What the cache holds after reading a text."""
    cache = DynamicCache(config=model.config)
    for piece in ids[None].split(32 * K, dim=1):
        model(piece.cuda(), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return sum(layer.nbytes() for layer in cache.layers)


def passkey(model: Any, tokenizer: Any, window: int, every: int, trials: int) -> Iterator[dict[str, Any]]:
    """Retrieval beyond an emulated window: top-k against truncation, accuracy inside the window beside."""
    depths, factors = [i / 9 for i in range(0, 10, every)], (1.5, 2, 3, 4)

    def cells(name: str, length: int, **more: Any) -> list[float]:
        found = []
        for depth in depths:
            cell = passkey_cell(model, tokenizer, length, depth, trials=trials, batch_size=trials, **more)
            found.append(cell.accuracy)
            print(f"{name}, {length} tokens, depth {depth:.2f}: {cell.correct} of {trials}", flush=True)
        return found

    inside = cells("stock inside the window", window)
    with LMInfinite(n_local=window, top_k=5).on(model):
        ours = {factor: cells("top_k=5", int(factor * window)) for factor in factors}
    truncated = {factor: cells("truncated", int(factor * window), keep_last=window - 8) for factor in factors}
    yield row(
        f"accuracy inside the window of {window:,} tokens (stock)", fmean(inside), "", beside={"stock, truncated": "–"}
    )
    for factor in factors:
        beside = {"stock, truncated": fmean(truncated[factor])}
        yield row(f"accuracy at {factor:g} times the window, top_k=5", fmean(ours[factor]), "", beside=beside)
    ratio = fmean(map(fmean, ours.values())) / fmean(map(fmean, truncated.values()))
    detail = {"depths": depths, "trials": trials, "top_k=5": ours, "truncated": truncated, "inside": inside}
    what = f"mean accuracy over truncation's, {len(depths)} depths, {trials} prompts a cell"
    yield row(what, ratio, "x", bar=">= 1.85", detail=detail)


def _ratios(texts: dict[str, Tensor], nll: Any, stock: Any) -> dict[str, float]:
    return {name: float(torch.tensor(a - b).exp()) for name, a, b in zip(texts, nll, stock, strict=True)}


def _nll(texts: dict[str, Tensor], score: Any, stock: Any) -> dict[str, Any]:
    return {
        "documents": list(texts),
        "nll": list(score.nll),
        "nll of stock": list(stock.nll),
        "targets": score.n_targets,
    }


def _beside(mine: str, stock: str) -> dict[str, str]:
    return {"LM-Infinite": mine, "stock": stock}


def _perplexities(score: Any, stock: Any) -> dict[str, float]:
    return {"perplexity": score.perplexity, "stock, last 8k only": stock.perplexity}


def main() -> None:
    """Run one part and write its result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=Path, help="folder of .txt files (recipes.benchmarks.documents)")
    parser.add_argument("--window", type=int, default=2 * K, help="the passkey part's emulated window, tokens")
    parser.add_argument("--every", type=int, default=1, help="passkey: read every n-th of the ten depths")
    parser.add_argument("--trials", type=int, default=20, help="passkey: prompts a cell")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=Path, help="the result file; results/lm_infinite_PART.json by default")
    args = parser.parse_args()
    if args.part != "passkey" and not args.documents:
        parser.error("this part reads texts: python -m recipes.benchmarks.documents DIR, then --documents DIR")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, tokenizer = load(args.model, dtype=dtype, device=device)
    documents: dict[str, Tensor] = {}
    for path in sorted(args.documents.glob("*.txt")) if args.documents else []:
        documents[path.stem] = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    match args.part:
        case "speed":
            rows = [*attention(model), *prefill(model, next(iter(documents.values())))]
        case "perplexity":
            rows = [*perplexity(model, documents), *million(model, documents)]
        case _:
            rows = list(passkey(model, tokenizer, args.window, args.every, args.trials))
    for found in rows:
        print(found["what"], found["value"], found["bar"], found["holds"], found["beside"], flush=True)
    name = f"SmolLM2-135M-Instruct (Q4_1, dequantised), {str(dtype).removeprefix('torch.')}"
    data = results(rows, model=name, device=device) | ({"commit": args.commit} if args.commit else {})
    write_results(args.out or RESULTS / f"lm_infinite_{args.part}.json", data)


if __name__ == "__main__":
    main()
