"""Shared prefixes beside stock transformers, in one run on one GPU: exactness, attention alone, whole-model decoding.

python -m recipes.benchmarks.hydragen exact|attention|decode|continuous [--smoke] [--budget SECONDS]

Each part writes its own result file, row by row; a part or row that fails says why and leaves the others alone.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_longctx import shared_prefix
from hf_longctx.evaluation.rows import row
from hf_longctx.generation.cuda_graph import can_replay, graph_forward
from hf_longctx.text.corpora import load_text
from hf_longctx.upstream.caches import given_cache

from . import hydragen_attention
from .reading import K, arguments, check_parts, finish, subject

PARTS = ("exact", "attention", "decode", "continuous")
QUESTION = 16  # tokens


class Attempt:
    """Makes a row, or one with the reason for its absence: a failure, or the end of the time."""

    def __init__(self, seconds: float) -> None:
        self.until = time.perf_counter() + seconds

    def __call__(self, what: str, unit: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if time.perf_counter() > self.until:
            return row(what, None, unit, why="not measured: the time (--budget) was up")
        try:
            return work()
        except Exception as error:  # out of memory, a kernel that is not there: other rows are still worth having
            traceback.print_exc()
            return row(what, None, unit, why=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def cast_(model: Any, dtype: torch.dtype) -> None:
    """Weights alone: `model.to(dtype)` would round the rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


# -- exactness ---------------------------------------------------------------------------------------------------------
class Forced(LogitsProcessor):
    """Has `generate` write given tokens, so that logits of several runs are about the same text."""

    def __init__(self, tokens_BN: Tensor) -> None:
        self.tokens, self.width = tokens_BN, None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.width = input_ids.shape[1] if self.width is None else self.width
        at = input_ids.shape[1] - self.width
        return torch.full_like(scores, float("-inf")).scatter(1, self.tokens[:, at : at + 1], 0.0)


def exact(model: Any, ids: Tensor, length: int, batch: int, new: int) -> Iterator[dict[str, Any]]:
    """A padded batch of unequal questions against stock `generate`, which gets document and question in every row."""
    pad = 0
    lengths = [5 + i % 12 for i in range(batch)]
    document = ids[:length].to(model.device)
    questions = [ids[length + 50 * i :][:n].to(model.device) for i, n in enumerate(lengths)]
    asked, mask = _left_padded(questions, pad)
    both, both_mask = _left_padded([torch.cat([document, question]) for question in questions], pad)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": pad}
    settings |= {"return_dict_in_generate": True, "output_logits": True}

    def stock(**more: Any) -> tuple[Tensor, Tensor]:
        out = model.generate(both, attention_mask=both_mask, **settings, **more)
        return out.sequences[:, -new:], torch.stack(out.logits, 1).float()

    def ours(**more: Any) -> tuple[Tensor, Tensor]:
        with shared_prefix(model, document) as prefix:
            out = prefix.generate(asked, attention_mask=mask, **settings, **more)
        return out.sequences[:, -new:], torch.stack(out.logits, 1).float()

    was = model.dtype
    cast_(model, torch.float32)
    tokens, truth = stock()
    told, logits = ours()
    where = f"{batch} unequal questions after {length:,} tokens, {new} greedy tokens each"
    yield row(f"fp32: rows with stock's tokens; {where}", int((tokens == told).all(1).sum()), "", bar=f"== {batch}")
    same = (tokens == told).long().cumprod(1).bool()
    # logits that follow the same tokens
    comparable = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], 1)
    off = _off(logits, truth)[comparable]
    what = "fp32: norm of the difference of a token's logits to stock's over their norm, largest of all tokens"
    yield row(what, off.max().item(), "", bar="<= 1e-5", detail={"mean": off.mean().item()})
    cast_(model, torch.bfloat16)
    force = LogitsProcessorList([Forced(tokens)])
    half = stock(logits_processor=force)[1]
    force = LogitsProcessorList([Forced(tokens)])
    mine = ours(logits_processor=force)[1]
    cast_(model, was)
    far, stock_far = _off(mine, truth), _off(half, truth)
    what = "bf16: how much further from stock's fp32 logits than stock's own bf16 is (norms as above, mean)"
    beside = {"hf_longctx to fp32": far.mean().item(), "stock to fp32": stock_far.mean().item()}
    beside |= {"hf_longctx to stock, both bf16": _off(mine, half).mean().item()}
    yield row(what, far.mean().item() - stock_far.mean().item(), "", bar="<= 2e-3", beside=beside)
    chances = (mine.softmax(-1) - half.softmax(-1)).abs().amax(-1)
    what = "bf16: largest difference of a token's probability to stock's bf16, mean of all tokens"
    apart = (half.softmax(-1) - truth.softmax(-1)).abs().amax(-1).mean().item()
    yield row(what, chances.mean().item(), "", beside={"stock bf16 to fp32": apart})


def _off(logits: Tensor, truth: Tensor) -> Tensor:
    return (logits - truth).norm(dim=-1) / truth.norm(dim=-1)


def _left_padded(rows: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = rows[0].new_full((len(rows), width), pad), rows[0].new_zeros(len(rows), width)
    for i, one in enumerate(rows):
        ids[i, width - len(one) :], mask[i, width - len(one) :] = one, 1
    return ids, mask


# -- decoding ----------------------------------------------------------------------------------------------------------
class Clock(StoppingCriteria):
    """When each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.times.append(_now())
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)

    def step_ms(self) -> float:
        """The median; the first steps record, compile and check."""
        steps = [(b - a) * 1e3 for a, b in zip(self.times, self.times[1:], strict=False)]
        return median(steps[len(steps) // 2 :])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(model: Any, document: Tensor, questions: Tensor, new: int) -> dict[str, float]:
    """Reading, answering, memory, and the time of a forward alone."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    start, clock = _now(), Clock()
    with shared_prefix(model, document) as prefix:
        read = _now() - start
        cache = prefix.cache()
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        prefix.generate(
            questions,
            attention_mask=torch.ones_like(questions),
            cache=cache,
            stopping_criteria=StoppingCriteriaList([clock]),
            **settings,
        )
        seconds = _now() - start
        peak = (torch.cuda.max_memory_allocated() - weights) if torch.cuda.is_available() else 0
        kv = (prefix.nbytes + cache.nbytes()) / 2**30
        del cache
        forward = _forward_ms(model, prefix, questions, new)
    return {
        "step of generate, ms": clock.step_ms(),
        "forward, ms": forward,
        "reading, s": read,
        "all, s": seconds,
        "KV, GiB": kv,
        "peak above the weights, GiB": peak / 2**30,
    }


@torch.no_grad()
def _forward_ms(model: Any, prefix: Any, questions: Tensor, new: int, count: int = 12) -> float:
    """Median milliseconds of a one-token forward of all rows, from a graph where there can be one."""
    cache = prefix.cache()
    cache.most = questions.shape[1] + new
    model(input_ids=questions, **given_cache(model, cache), use_cache=True, logits_to_keep=1)
    step = graph_forward(model) if can_replay(model, cache) else model
    times = []
    for i in range(min(count, new)):
        pos = torch.full_like(questions[:, :1], prefix.length + questions.shape[1] + i)
        start = _now()
        step(input_ids=questions[:, :1], position_ids=pos, **given_cache(model, cache), use_cache=True)
        times.append((_now() - start) * 1e3)
    return median(times[len(times) // 2 :])


def stock(model: Any, document: Tensor, questions: Tensor, new: int) -> dict[str, float]:
    """`model.generate` with the document in every row."""
    start, clock = _now(), Clock()
    both = torch.cat([document.expand(len(questions), -1), questions], 1)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    criteria = StoppingCriteriaList([clock])
    model.generate(both, attention_mask=torch.ones_like(both), stopping_criteria=criteria, **settings)
    return {"step of generate, ms": clock.step_ms(), "all, s": _now() - start}


def decode(
    model: Any, ids: Tensor, attempt: Attempt, sizes: list[tuple[int, int, int]], new: int, stock_new: int
) -> Iterator[dict[str, Any]]:
    """Tokens a second by batch and prefix, beside stock's at the batch that fits. `sizes`: batch, prefix, stock's."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * model.dtype.itemsize
    found: dict[tuple[int, int], dict[str, float]] = {}
    known: dict[tuple[int, int], dict[str, float]] = {}

    def asked(batch: int, length: int) -> tuple[Tensor, Tensor]:
        text = ids.repeat(-(-(length + batch + QUESTION) // len(ids))).to(model.device)
        return text[:length], text[length:][: batch + QUESTION].unfold(0, QUESTION, 1)[:batch].contiguous()

    for batch, length, stock_batch in sizes:
        name = f"batch {batch:,}, prefix {length:,}, suffix {QUESTION} + {new}"

        def tokens(batch: int = batch, length: int = length, other: int = stock_batch, name: str = name) -> Any:
            found[batch, length] = mine = ours(model, *asked(batch, length), new)
            beside: dict[str, Any] = {}
            why = None
            try:
                if (other, length) not in known:
                    known[other, length] = stock(model, *asked(other, length), stock_new)
                theirs = known[other, length]
                beside = {"stock generate": other / theirs["step of generate, ms"] * 1e3, "its batch": other}
            except Exception as error:
                traceback.print_exc()
                why, theirs = f"stock at batch {other}: {type(error).__name__}", {}
            rate = batch / mine["step of generate, ms"] * 1e3
            detail = {"hf_longctx": mine, "stock": theirs}
            return row(f"{name}: tokens/s while decoding", rate, "", beside=beside, detail=detail, why=why)

        yield attempt(f"{name}: tokens/s while decoding", "", tokens)
        if (batch, length) == sizes[0][:2] and (batch, length) in found:
            needed = batch * (length + QUESTION + new) * token / 2**30
            what = f"{name}: keys and values, GiB"
            yield row(what, found[batch, length]["KV, GiB"], "GiB", bar="< 8", beside={"stock would need": needed})
        if len(found) == 2 and all(size[:2] in found for size in sizes[:2]):
            high, low = (found[size[:2]]["forward, ms"] for size in sizes[:2])
            what = f"forward of one token at batch {batch:,}: time after {sizes[0][1]:,} tokens over {sizes[1][1]:,}"
            beside = {f"ms after {n:,}": ms for n, ms in ((sizes[0][1], high), (sizes[1][1], low))}
            yield row(what, high / low, "", bar="<= 2", beside=beside)


# -- continuous batching -----------------------------------------------------------------------------------------------
def continuous(
    model: Any, ids: Tensor, attempt: Attempt, length: int, batch: int, new: int
) -> Iterator[dict[str, Any]]:
    """Stock continuous batching, which shares the blocks of a common beginning, on the same requests."""
    document = ids[:length]
    questions = ids[length:][: batch + QUESTION].unfold(0, QUESTION, 1)[:batch].contiguous()
    name = f"{batch} questions after {length:,} tokens, {new} new tokens each"
    start = _now()
    with shared_prefix(model, document.to(model.device)) as prefix:
        asked = questions.to(model.device)
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        prefix.generate(asked, attention_mask=torch.ones_like(asked), **settings)
    seconds = _now() - start

    def peer() -> dict[str, Any]:
        requests = [torch.cat([document, question]).tolist() for question in questions]
        config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        start = _now()
        out = model.generate_batch(requests, generation_config=config)
        taken = _now() - start
        written = sum(len(one.generated_tokens) for one in out.values())
        if written != batch * new:
            errors = {str(one.error) for one in out.values()}
            raise RuntimeError(f"{written} of {batch * new} tokens were written: {errors}")
        what = f"{name}: all of it, seconds; times faster than stock continuous batching"
        return row(what, taken / seconds, "x", beside={"hf_longctx, s": seconds, "stock continuous batching, s": taken})

    yield attempt(f"{name}: stock continuous batching", "s", peer)


def main() -> None:
    """Run some parts, each into its result file."""
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for any machine: shows that it runs")
    parser.add_argument("--budget", type=float, default=180, help="seconds, after which no new row is begun")
    args = parser.parse_args()
    check_parts(parser, args)
    attempt = Attempt(args.budget)
    small = args.smoke
    model, tokenizer, _ = subject(args)
    model.requires_grad_(False)
    text = load_text("python-docs")
    ids = tokenizer(text[:20_000] if small else text, return_tensors="pt").input_ids[0]
    failed = []
    for part in args.parts:
        start = _now()
        try:
            label = None
            match part:
                case "exact":
                    rows = exact(model, ids, *((100, 3, 4) if small else (4 * K, 16, 32)))
                case "attention":
                    label = "one layer's attention, random keys"
                    rows = hydragen_attention.rows(attempt, small)
                case "decode":
                    most = [(1024, 16 * K, 32), (1024, K, 1024), (256, 16 * K, 32), (64, 16 * K, 32)]
                    sizes = [(6, 300, 2), (6, 100, 6)] if small else most
                    rows = decode(model, ids, attempt, sizes, *((6, 4) if small else (128, 24)))
                case _:
                    rows = continuous(model, ids, attempt, *((200, 3, 4) if small else (2 * K, 64, 32)))
            finish(model, rows, args, f"hydragen_{part}", label=label)
        except Exception:
            traceback.print_exc()
            failed.append(part)
        print(f"-- {part}: {_now() - start:.0f} s", flush=True)
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}\n")


if __name__ == "__main__":
    main()
