"""PIE: edits of a text in the cache, against a full re-read.

python -m recipes.benchmarks.pie fidelity     # KL and top-1 agreement, SmolLM2 in fp32: 7 minutes on an H100
python -m recipes.benchmarks.pie rules        # which tokens to read again: rules of equal cost, side by side: 1 minute
python -m recipes.benchmarks.pie time         # a random 1B Llama in bf16, on a GPU: 1 minute
python -m recipes.benchmarks.pie rotation     # moved keys against read ones; a CPU will do
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_longctx.anatomy import find_decoder
from hf_longctx.editing import graph as edit_graph
from hf_longctx.editing.edit import edit
from hf_longctx.editing.plan import REPAIR
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from hf_longctx.upstream.caches import given_cache

from .pie_methods import METHODS, OURS, RULES, Result, measure, view
from .pie_texts import KINDS, MOST, PLACES, edits
from .reading import TRAINED, K, arguments, finish, lengths

BARS = {2 * K: "<= 5e-4", 8 * K: "<= 2e-4"}
# the geometry of Llama 3.2 1B
ONE_B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
SPEED = {2 * K: None, 8 * K: ">= 5", 32 * K: ">= 20"}


# -- what it costs in fidelity ----------------------------------------------------------------------------------------
def fidelity(model: Any, tokenizer: Any, args: Any) -> Iterator[dict[str, Any]]:
    """Next-token distributions after an edit against those after a full re-read."""
    for length in args.lengths:
        sample = edits(tokenizer, min(length, TRAINED - FREE), args.edits, args.per_text, seed=length)
        found = measure(model, sample, METHODS, args.batch if length > 4 * K else 2 * args.batch)
        yield from _rows(found, length, BARS.get(length), ">= 99.3" if length in BARS else None)


FREE = 256  # tokens of the trained length for what an edit adds and what follows


def rules(model: Any, tokenizer: Any, args: Any) -> Iterator[dict[str, Any]]:
    """The same number of tokens read again, chosen by several rules. Some use a full read."""
    for length in args.lengths[:1]:
        sample = edits(tokenizer, min(length, TRAINED - FREE), args.edits, args.per_text, seed=length + 1)
        found = measure(model, sample, RULES, 2 * args.batch, attended=True)
        yield from _rows(found, length, None, None)


def _rows(found: dict[str, Result], length: int, bar: str | None, top_bar: str | None) -> Iterator[dict[str, Any]]:
    ours = found[OURS]
    n = len(ours.kl)
    detail = {name: r.spread() for name, r in found.items()}

    def beside(value: Callable[[Result], float]) -> dict[str, float]:
        return {name: value(result) for name, result in found.items() if name != OURS}

    def kind(name: str) -> Callable[[Result], float]:
        return lambda r: _mean([kl for kl, of in zip(r.kl, r.kind, strict=True) if of == name])

    what = f"{min(length, TRAINED - FREE):,} tokens"
    mean: Callable[[Result], float] = lambda r: _mean(r.kl)  # noqa: E731
    top: Callable[[Result], float] = lambda r: 100 * _mean(r.top1)  # noqa: E731
    again: Callable[[Result], float] = lambda r: _mean(r.again)  # noqa: E731
    yield row(
        f"mean KL to a full re-read, {what}, {n} edits", mean(ours), "", bar=bar, beside=beside(mean), detail=detail
    )
    largest: Callable[[Result], float] = lambda r: max(r.kl)  # noqa: E731
    yield row(f"largest KL of an edit, {what}", largest(ours), "", beside=beside(largest))
    yield row(f"top-1 agreement, {what}", top(ours), "%", bar=top_bar, beside=beside(top))
    yield row(f"tokens read again, mean, {what}", again(ours), "", beside=beside(again))
    for name in KINDS:
        if any(of == name for of in ours.kind):
            yield row(f"mean KL, {name}, {what}", kind(name)(ours), "", beside=beside(kind(name)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -- time -------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def timed(args: Any) -> Iterator[dict[str, Any]]:
    """An edit of up to 64 tokens against a full re-read, a random 1B Llama in bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = LlamaConfig(**(ONE_B | ({"num_hidden_layers": 2} if args.smoke else {})))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    decoder: Any = find_decoder(model)
    for length in args.lengths or SPEED:
        old = torch.randint(0, config.vocab_size, (length,))
        before = DynamicCache(config=config)
        decoder(input_ids=old[None].to(device), **given_cache(decoder, before), use_cache=True)
        whole = {"input_ids": old[None].to(device), "use_cache": True}
        read = [_seconds(partial(decoder, **whole))[0] for _ in range(args.runs + 2)][2:]
        for places in (1, PLACES):
            yield _timed(model, decoder, old, before, read, places, args)
        edit_graph.forget(decoder)


def _timed(
    model: Any, decoder: Any, old: Tensor, before: DynamicCache, read: list[float], places: int, args: Any
) -> dict[str, Any]:
    """Edits at this number of places, of up to 64 tokens altogether; a full re-read takes `read` seconds."""
    modes = {"eager": False} | ({"compiled": True} if torch.cuda.is_available() else {})
    length, full = len(old), median(read)
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    forwarded, parts = [], {}
    for name, compiled in modes.items():
        source = random.Random(length)
        for run in range(args.runs + 2):
            new = _changed(old, source, places, model.config.vocab_size)
            took, (_, report) = _seconds(partial(edit, model, view(before), old, new, compiled=compiled))
            if run >= 2:  # graphs are recorded and kernels compiled in the first ones
                seconds[name].append(took)
                forwarded.append(report.forwarded + report.repaired)
                parts[name] = {key: getattr(report, key) for key in ("seconds_diff", "seconds_move", "seconds")}
        if compiled and not edit_graph.is_checked(decoder):
            raise SystemExit("the CUDA graph was given up (see the warning above), so there is nothing to time")
    best = "compiled" if "compiled" in seconds else "eager"
    label = f"edit of 1 to 64 tokens in {length // K}k" if length >= K else f"edit in {length}"
    label += f" at {places} places" * (places > 1)
    return row(
        f"{label}, times faster than a full re-read",
        full / median(seconds[best]),
        "x",
        bar=SPEED.get(length) if best == "compiled" and places == 1 else None,
        beside={
            "eager": f"{full / median(seconds['eager']):.1f} x",
            "milliseconds": f"{1e3 * median(seconds[best]):.2f}",
            "milliseconds, eager": f"{1e3 * median(seconds['eager']):.2f}",
            "milliseconds, full re-read": f"{1e3 * full:.1f}",
            "tokens forwarded": f"{median(forwarded):.0f} of {length:,}",
        },
        detail={"seconds": seconds, "full re-read": read, "forwarded": forwarded, "repair": REPAIR, "parts": parts},
    )


def _changed(old: Tensor, source: random.Random, places: int, vocabulary: int) -> Tensor:
    most, new = MOST // places, old
    at = sorted(source.sample(range(1, len(old) - MOST, MOST), places), reverse=True)
    for place in at:
        gone, come = source.randint(0, most), source.randint(1, most)
        new = torch.cat([new[:place], torch.randint(0, vocabulary, (come,)), new[place + gone :]])
    return new


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    _wait()
    begun = time.perf_counter()
    done = work()
    _wait()
    return time.perf_counter() - begun, done


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- rotation ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def rotation(model: Any, tokenizer: Any, args: Any) -> Iterator[dict[str, Any]]:
    """The first layer's keys follow from tokens and positions alone: after an edit they must be a full read's."""
    first = _first_layer(model)
    worst, text, before = 0.0, None, DynamicCache()
    for e in edits(tokenizer, K, args.edits, args.per_text, seed=3):
        if e.text != text:
            text, before = e.text, _read(first, e.old)
        cache, _ = edit(first, view(before), e.old, e.new, 0)
        worst = max(worst, _apart(cache, _read(first, e.new[:-1])))
    yield row(f"largest difference of layer-0 keys, {args.edits} edits of 1k tokens", worst, "", bar="<= 1e-5")
    source, held = random.Random(0), next(edits(tokenizer, 400, 1, 1, seed=4)).old
    cache, wrong = _read(first, held), 0
    for _ in range(args.many):
        at, gone = source.randrange(len(held)), source.choice([0, 1, 3])
        come = torch.tensor(source.choices(held.tolist(), k=source.choice([0, 1, 3])), dtype=torch.long)
        new = torch.cat([held[:at], come, held[at + gone :]])[:500]
        edit(first, cache, held, new, 0)
        wrong += cache.get_seq_length() != len(new) - 1
        held = new
    yield row(
        f"of {args.many} edits upon each other: caches as long as the text",
        float(args.many - wrong),
        "",
        bar=f"== {args.many}",
    )
    off = _apart(cache, _read(first, held[:-1]))
    yield row(f"largest difference of layer-0 keys after {args.many} edits upon each other", off, "")


def _apart(ours: DynamicCache, truth: DynamicCache) -> float:
    return float((ours.layers[0].keys - truth.layers[0].keys).abs().max())


def _read(model: Any, ids: Tensor) -> DynamicCache:
    cache = DynamicCache()
    model(ids[None].to(model.device), **given_cache(model, cache), use_cache=True, logits_to_keep=1)
    return cache


def _first_layer(model: Any) -> Any:
    """The model with its first layer alone: all that these rows look at."""
    config = type(model.config).from_dict(model.config.to_dict() | {"num_hidden_layers": 1})
    one = type(model)(config).to(model.device, model.dtype).eval()
    one.load_state_dict(model.state_dict(), strict=False)
    return one


def main() -> None:
    """Run one part and write its result file."""
    parser = arguments(__doc__)
    parser.add_argument("part", choices=("fidelity", "rules", "time", "rotation"))
    parser.add_argument("--edits", type=int, default=200, help="edits per cell")
    parser.add_argument("--per-text", type=int, default=5, help="edits of one text")
    parser.add_argument("--batch", type=int, default=40, help="edits read together at 8k; twice as many at 2k")
    parser.add_argument("--lengths", type=lengths, default=None)
    parser.add_argument("--runs", type=int, default=15, help="timed edits of a length")
    parser.add_argument("--many", type=int, default=1000, help="edits upon each other, part rotation")
    parser.add_argument("--smoke", action="store_true", help="part time: two layers")
    args = parser.parse_args()
    if args.part == "time":
        model: Any = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)
        finish(model, timed(args), args, "pie_time", label="Llama of 3.2 1B's geometry, random weights, bfloat16")
        return
    args.lengths = args.lengths or [2 * K, 8 * K]
    torch.manual_seed(0)
    model, tokenizer = load(args.model, dtype=torch.float32, device="cuda" if torch.cuda.is_available() else "cpu")
    part = {"fidelity": fidelity, "rules": rules, "rotation": rotation}[args.part]
    finish(model, part(model, tokenizer, args), args, f"pie_{args.part}")


if __name__ == "__main__":
    main()
