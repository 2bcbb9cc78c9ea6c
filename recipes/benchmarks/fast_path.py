"""The fast path beside stock transformers, in one run on one GPU: decoding, prefill, memory, batches, the kernel alone.

python -m recipes.benchmarks.documents DOCS        # fetches the texts
python -m recipes.benchmarks.fast_path decode|prefill|kernel|memory|batch|large --documents DOCS
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import LMInfinite
from hf_longctx.evaluation.rows import row
from hf_longctx.generation.cuda_graph import graph_forward
from hf_longctx.upstream.caches import given_cache

from .decoding import DEVICE, compiled_ms, eager_ms, tokens_ms
from .geometries import random_llama
from .plan import LLAMA_8B
from .reading import TRAINED, K, arguments, check_parts, finish, subject
from .timing import milliseconds, peak_gib

PARTS = ("decode", "prefill", "kernel", "memory", "batch", "large")
MILLION = 10**6
COPY = "the card's copy"


# -- decoding ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def ours_ms(model: Any, ids: Tensor, chunk: int = 32 * K) -> tuple[float, float]:
    """A model that carries a method, after reading `ids`; and the seconds that recording its graph took."""
    cache = DynamicCache(config=model.config)
    for piece in ids[None].split(chunk, dim=1):
        model(piece.to(DEVICE), **given_cache(model, cache), use_cache=True, logits_to_keep=1)
    step = graph_forward(model)
    tokens_ms(step, cache, len(ids), count=1, warm=0)
    start = time.perf_counter()
    tokens_ms(step, cache, len(ids) + 1, count=1, warm=0)
    seconds = time.perf_counter() - start
    return tokens_ms(step, cache, len(ids) + 2), seconds


def decode(model: Any, ids: Tensor, contexts: tuple[int, ...], window: int) -> Iterator[dict[str, Any]]:
    """Milliseconds per token by context, and the two ratios of the bars."""
    ours, eager, compiled = {}, {}, {}
    with LMInfinite(n_local=window).on(model):
        for context in contexts:
            ours[context], recording = ours_ms(model, ids[:context])
    stock = [context for context in contexts if context <= 128 * K]
    for context in contexts:
        if context in stock:
            eager[context] = eager_ms(model, context)
            compiled[context], compiling = compiled_ms(model, context)
        beside = {"stock eager": eager.get(context), "stock static + compile": compiled.get(context)}
        yield row(
            f"decoding after {context:,} tokens, window {window:,}: ms per token", ours[context], "ms", beside=beside
        )
    low, high = stock[0], stock[-1]
    what = f"decoding at {low:,}: time over stock static + compile's"
    yield row(what, ours[low] / compiled[low], "", bar="<= 1.10")
    what = f"decoding at {high:,}: times faster than stock static + compile"
    yield row(what, compiled[high] / ours[high], "x", bar=">= 3.5")
    yield row("seconds to record a graph", recording, "s", beside={"stock static + compile": compiling})


# -- prefill and memory ------------------------------------------------------------------------------------------------
def prefill(model: Any, ids: Tensor) -> Iterator[dict[str, Any]]:
    """Tokens a second, window 4k, chunks of 32k; stock's measured in one piece and carried on by its square law."""

    @torch.no_grad()
    def run(n: int, chunk: int) -> None:
        cache = DynamicCache(config=model.config)
        for piece in ids[None, :n].split(chunk, dim=1):
            model(piece.to(DEVICE), **given_cache(model, cache), use_cache=True, logits_to_keep=1)

    with LMInfinite(n_local=4 * K).on(model):
        ours = {n: milliseconds(lambda n=n: run(n, 32 * K), runs=3, warm_up=1) / 1e3 for n in (128 * K, MILLION)}
    stock = {n: milliseconds(lambda n=n: run(n, n), runs=3, warm_up=1) / 1e3 for n in (32 * K, 64 * K, 128 * K)}
    # a n + b n^2 through the two longest
    (m, slow), (n, slower) = list(stock.items())[1:]
    square = (slower / n - slow / m) / (n - m)
    linear = slow / m - square * m
    at_million = linear * MILLION + square * MILLION**2
    rates = {n: n / seconds for n, seconds in ours.items()}
    detail = {"hf_longctx, s": ours, "stock, s": stock, "stock at 1,000,000, extrapolated, s": at_million}
    what = "prefill, window 4k: tokens/s at 1,000,000 over those at 128k"
    beside = {"tokens/s at 1,000,000": rates[MILLION], "tokens/s at 128k": rates[128 * K]}
    yield row(what, rates[MILLION] / rates[128 * K], "", bar=">= 0.95", beside=beside, detail=detail)
    what = "prefill of 1,000,000 tokens, window 4k: times faster than stock (extrapolated by its square law)"
    beside = {"seconds": ours[MILLION], "stock, seconds": at_million}
    yield row(what, at_million / ours[MILLION], "x", bar=">= 30", beside=beside)


def memory(model: Any, documents: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Peak above the weights while `stream` reads real texts over and over."""
    import hf_longctx

    texts = [ids for ids in documents.values() if len(ids)]

    def endless() -> Iterator[Tensor]:
        for ids in cycle(texts):
            yield from ids.split(4 * K)

    asked, held, seconds = {}, {}, {}
    with LMInfinite(n_local=4 * K).on(model):
        for n in (128 * K, MILLION, 10 * MILLION):
            start = time.perf_counter()
            before = torch.cuda.memory_stats()["requested_bytes.all.current"]
            held[n] = peak_gib(lambda n=n: hf_longctx.stream(model, islice(endless(), n // (4 * K))))
            asked[n] = (torch.cuda.memory_stats()["requested_bytes.all.peak"] - before) / 2**30
            seconds[n] = time.perf_counter() - start
    for what, peaks in (("asked of torch's allocator", asked), ("as it rounds that up", held)):
        beside = {f"{n:,} tokens, GiB": peak for n, peak in peaks.items()}
        what = f"peak memory above the weights, {what}: 10,000,000 tokens streamed over 128k"
        yield row(what, peaks[10 * MILLION] / peaks[128 * K], "", bar="<= 1.02", beside=beside, detail=seconds)
    yield row("peak memory above the weights at the default chunk, GiB", max(held.values()), "GiB", bar="< 1")


# -- the kernel alone --------------------------------------------------------------------------------------------------
@torch.no_grad()
def kernel() -> Iterator[dict[str, Any]]:
    """One query over 128k un-rotated keys, 8B geometry; bandwidth is of keys and values, read once."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from hf_longctx.ops.attend import attend
    from hf_longctx.ops.branch import Branch
    from hf_longctx.ops.layout import rotary_layout
    from hf_longctx.ops.masks import Causal
    from hf_longctx.ops.positions import Positions
    from hf_longctx.ops.rotation import Rotation

    S, H, G, D = 128 * K, 32, 8, 128
    q = torch.randn(1, H, 1, D, device=DEVICE, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, G, S, D, device=DEVICE, dtype=torch.bfloat16).unbind()
    pos = torch.arange(S, device=DEVICE)[None]
    angle = pos[..., None] * 5e5 ** (-torch.arange(0, D, 2, device=DEVICE) / D)
    cos, sin = (f(torch.cat([angle, angle], -1)).to(q.dtype) for f in (torch.cos, torch.sin))
    at_q = Rotation(cos[:, -1:], sin[:, -1:], rotary_layout(apply_rotary_pos_emb))
    at_k = Rotation(cos, sin, rotary_layout(apply_rotary_pos_emb))
    branch = Branch(q, k, v, Positions(pos[:, -1:], pos, padded=False), Causal(), at_q, at_k)
    turned = at_q(q), branch.k_rope(k)  # type: ignore[misc]

    def replayed(work: Callable[[], Any]) -> float:
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                work()
        return milliseconds(graph.replay) / 10

    big = torch.empty(2**30, device=DEVICE, dtype=torch.uint8)
    to = torch.empty_like(big)
    copied = 2 * big.numel() / milliseconds(lambda: to.copy_(big)) / 1e6
    ours = replayed(lambda: attend([branch], scale=D**-0.5))
    read = 2 * k.numel() * k.element_size() / ours / 1e6
    peers = {
        "torch flash, keys rotated before": replayed(
            lambda: torch.ops.aten._flash_attention_forward(
                turned[0].transpose(1, 2),
                turned[1].transpose(1, 2),
                v.transpose(1, 2),
                None,
                None,
                1,
                S,
                0.0,
                False,
                False,
                scale=D**-0.5,
            )
        ),
        "stock SDPA, keys rotated before": replayed(
            lambda: torch.nn.functional.scaled_dot_product_attention(*turned, v, enable_gqa=True)
        ),
    }
    beside = {"GB/s of keys and values": read, f"GB/s of {COPY}": copied}
    yield row(
        "decoding attention, 128k keys, 32/8 heads d128: share of the copy bandwidth",
        read / copied,
        "",
        bar=">= 0.60",
        beside=beside,
    )
    milli = {"ms": ours, **{f"{name}, ms": value for name, value in peers.items()}}
    for name, other in peers.items():
        yield row(f"decoding attention: time over {name}", ours / other, "", bar="<= 1", beside=milli)


# -- batches -----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def batch(model: Any, tokenizer: Any, ids: Tensor) -> Iterator[dict[str, Any]]:
    """Sixteen left-padded prompts of unequal length: fp32 tokens, and bf16 logits, against one by one.

    In bf16 a batch rounds otherwise than a row alone, in the stock model too, whose difference is the yardstick.
    """
    lengths = [64 + 97 * i for i in range(16)]
    rows = [ids[5000 * i : 5000 * i + n].to(DEVICE) for i, n in enumerate(lengths)]
    width = max(lengths)
    padded = torch.full((16, width), tokenizer.pad_token_id or 0, device=DEVICE)
    mask = torch.zeros_like(padded)
    for i, one in enumerate(rows):
        padded[i, width - len(one) :], mask[i, width - len(one) :] = one, 1
    settings = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    with LMInfinite(n_local=512).on(model.float()):
        together = model.generate(padded, attention_mask=mask, **settings).sequences[:, width:]
        alone = torch.stack([model.generate(one[None], **settings).sequences[0, len(one) :] for one in rows])
    same = (together == alone).all(1).sum().item()
    yield row("16 left-padded prompts, 48 tokens each, fp32: rows with the same tokens as alone", same, "", bar="== 16")
    model.bfloat16()

    def off() -> float:
        """The largest difference of a row's first logits in the batch from those that it has alone."""
        logits = model.generate(padded, attention_mask=mask, **settings).logits[0].float()
        one = torch.cat([model.generate(row[None], **settings).logits[0].float() for row in rows])
        return ((logits - one).norm(dim=-1) / one.norm(dim=-1)).max().item()

    settings |= {"max_new_tokens": 1, "min_new_tokens": 1}
    stock = off()
    with LMInfinite(n_local=512).on(model):
        ours = off()
    what = "the same in bf16: first logits, largest relative difference of a row, over that of the stock model"
    yield row(what, ours / stock, "", bar="<= 1.25", beside={"LM-Infinite": ours, "stock": stock})


def main() -> None:
    """Run some parts, each into its result file."""
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    args = parser.parse_args()
    check_parts(parser, args)
    if not args.documents and {"memory", "batch"} & set(args.parts):
        parser.error("it reads texts: python -m recipes.benchmarks.documents DIR, then --documents DIR")
    model, tokenizer, documents = subject(args)
    model.requires_grad_(False)
    # the time per token does not depend on the token
    ids = max(documents.values(), key=len) if documents else torch.randint(model.config.vocab_size, (MILLION,))
    failed = []
    for part in args.parts:
        label = None
        match part:
            case "decode":
                rows = decode(model, ids, (8 * K, 128 * K, MILLION), TRAINED)
            case "prefill":
                rows = prefill(model, ids)
            case "kernel":
                rows = kernel()
            case "memory":
                rows = memory(model, documents)
            case "batch":
                rows = batch(model, tokenizer, ids)
            case _:
                model, label = random_llama(LLAMA_8B, DEVICE, torch.bfloat16), "a random Llama of 8B geometry, bfloat16"
                rows = decode(model, ids % 128000, (8 * K, 128 * K), TRAINED)
        try:
            finish(model, rows, args, f"fast_path_{part}", label=label)
        except Exception:  # the other parts are worth having
            traceback.print_exc()
            failed.append(part)
    if failed:
        raise SystemExit(f"these parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
