"""Looking tokens up for one query, kernel by kernel, beside torch's attention to all keys: microseconds on one GPU.

python -m recipes.benchmarks.lookup_kernels             # 131,072 and 1,048,576 keys of Llama 8B's layers
TRITON_INTERPRET=1 python -m recipes.benchmarks.lookup_kernels --tiny       # without a GPU: shows that it runs

Every part is recorded in a CUDA graph for several layers, as a model's step is, so that launches cost what they cost
there, and nothing is found in the card's cache. The choice is compared with torch's before anything is timed.
"""

# G key/value heads, S keys, D head dim
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx.evaluation.rows import row
from hf_longctx.ops.codes import Centre, encode, score
from hf_longctx.ops.found_tokens import FoundTokens
from hf_longctx.ops.paged import paged
from hf_longctx.ops.pages import PAGE, Pages
from recipes.bars import missed
from recipes.outs import RESULT_OPTION

from .reading import finish
from .timing import by_clock, milliseconds

HEADS, GROUPS, DIM, TOP, SHORTLIST, WINDOW = 32, 8, 128, 8, 1024, 8192
LENGTHS, TINY = (2**17, 2**20), (600,)
BARS = {2**17: ">= 4.5", 2**20: ">= 16"}  # times as fast as torch's attention to all keys
CHOOSE, ATTENTION = "all of choose", "(d) window, first and found ones, and the gate"
LAYER, SDPA = "choose, then attention", "torch SDPA over all keys"
BYTES = 2**28  # of the codes of all layers: several times the card's cache


class Problem(NamedTuple):
    """A query, its position, keys and values, pages of them, and what these are of."""

    q: Tensor
    q_pos: Tensor
    k: Tensor
    v: Tensor
    pages: Pages
    held: list[Tensor]


def problem(S: int, device: str, tiny: bool, layer: int) -> Problem:
    """That of a layer, drawn at random."""
    H, G, D = (4, 2, 64) if tiny else (HEADS, GROUPS, DIM)
    dtype = torch.float32 if tiny else torch.bfloat16
    generator = torch.Generator(device).manual_seed(layer)
    q = torch.randn(1, H, 1, D, generator=generator, device=device).to(dtype)
    k, v = torch.empty(2, 1, G, S, D, device=device, dtype=dtype)
    for start in range(0, S, PAGE):
        for x in (k, v):  # one memory for both would be read once
            part = x[:, :, start : start + PAGE]
            part.copy_(torch.randn(part.shape, generator=generator, device=device))
    pages, held = paged(k, v, torch.arange(S, device=device)[None], 256)
    return Problem(q, torch.full((1, 1), S - 1, device=device), k, v, pages, held)


def parts(layer: Problem, tiny: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by its name, in order."""
    from hf_longctx.ops.kernels import bits, triton_decode
    from hf_longctx.ops.kernels import triton_lookup as kernels
    from hf_longctx.ops.kernels.triton_decode import Keys
    from hf_longctx.ops.kernels.triton_found import decode

    q, q_pos, k, v, pages, _ = layer
    near, shortlist = (64, 32) if tiny else (WINDOW, SHORTLIST)
    after = torch.full((1,), 15, device=q.device)
    unpacked = kernels.Shapes(q, pages, "group")
    shapes = kernels.Shapes(q, pages, "group", bits.unsupported_reason(q, pages, "group") is None)
    at, beside = (q_pos, pages, shapes, near, after), (q_pos, pages, unpacked, near, after)
    ready, ready_unpacked = kernels.prepared(q, pages, shapes), kernels.prepared(q, pages, unpacked)
    best = kernels.maxima(ready, *at)
    found = kernels.survivors(ready, best, *at, shortlist)
    table = kernels.last(q, *found, pages, shapes, TOP, shortlist)
    D = q.shape[-1]
    k_pos = torch.arange(k.shape[2], device=q.device)[None]
    angles = torch.rand(1, near, D // 2, device=q.device).repeat(1, 1, 2)
    turn = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
    window = Keys(k[:, :, -near:], v[:, :, -near:], k_pos[:, -near:], (turn[0][:, :1], turn[1][:, :1]), turn, 0, near)
    first = Keys(k[:, :, :16], v[:, :, :16], k_pos[:, :16], None, None, near, 2**62)
    last = q[:, :, 0], q_pos[:, 0], D, D**-0.5
    settings: dict[str, Any] = {"k": TOP, "near": near, "after_B": after, "per": "group", "shortlist": shortlist}
    settings["by_bits"] = shapes.by_bits

    def choose() -> Tensor:
        return kernels.choose(q, q_pos, pages, **settings)

    def attend(table: Tensor) -> Any:
        return decode(last[0], window, [first], FoundTokens(last[0], table[:, :, 0], pages, 0.0), *last[1:])

    return {
        "queries prepared": lambda: kernels.prepared(q, pages, shapes),
        "(a) codes' scores, a maximum a block": lambda: kernels.maxima(ready, *at),
        "(a) with codes that are unpacked": lambda: kernels.maxima(ready_unpacked, *beside),
        "(b) the best tokens by their codes": lambda: kernels.survivors(ready, best, *at, shortlist),
        "(c) their real keys, and the last of them": lambda: kernels.last(q, *found, pages, shapes, TOP, shortlist),
        ATTENTION: lambda: attend(table),
        "window and first ones alone": lambda: triton_decode.decode(last[0], [window, first], *last[1:]),
        CHOOSE: choose,
        LAYER: lambda: attend(choose()),
        SDPA: lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True),
    }


def check(layer: Problem, tiny: bool) -> None:
    """Most of the tokens that are chosen are those that torch finds by the same codes."""
    run = parts(layer, tiny)[CHOOSE]
    q, k, pages = layer.q, layer.k, layer.pages
    near, shortlist, G = *((64, 32) if tiny else (WINDOW, SHORTLIST)), k.shape[1]
    for g in range(G):
        heads, keys = q[0].unflatten(0, (G, -1))[g : g + 1], k[0, g : g + 1]
        centre = Centre(pages.mean_BGD[0, g : g + 1], pages.width_BGC[0, g : g + 1])
        cuts = [score(heads, *encode(part, centre), centre).amax(1)[0, 0] for part in keys.split(2**17, 1)]
        scores = torch.cat(cuts)
        scores[:16] = scores[len(scores) - near :] = float("-inf")
        slots = scores.topk(shortlist).indices
        real = (heads[0, :, 0].float() @ keys[0, slots].float().T).amax(0)
        truth, table = slots[real.topk(TOP).indices], run()[0, g, 0]
        assert torch.isin(table, truth).sum() >= TOP - 2, f"group {g}: {table.tolist()} for {truth.tolist()}"


def microseconds(works: list[Callable[[], Any]], tiny: bool) -> float:
    """Of one of several `works` from one graph; by the clock where there is no GPU."""
    if tiny:
        return 1e3 * by_clock(works[0], runs=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        works[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in 4 * works:
            work()
    return 1e3 * milliseconds(graph.replay) / (4 * len(works))


def measured(sizes: Sequence[int], tiny: bool) -> Iterator[dict[str, Any]]:
    """Check and time each length, print its table, and give its rows."""
    for S in sizes:
        count = 1 if tiny else max(2, BYTES // (GROUPS * S * DIM // 8))
        layers = [problem(S, "cpu" if tiny else "cuda", tiny, layer) for layer in range(count)]
        check(layers[0], tiny)
        works = [parts(layer, tiny) for layer in layers]
        took = {name: microseconds([work[name] for work in works], tiny) for name in works[0]}
        print(f"{S:,} keys, {count} layers", *(f"  {name:<48} {us:10.1f} µs" for name, us in took.items()), sep="\n")
        yield from rows(S, took, count)
        del layers, works


def rows(S: int, took: dict[str, float], layers: int) -> Iterator[dict[str, Any]]:
    """A row for each part of a length, and the one with a bar."""
    for name, us in took.items():
        yield row(f"{S:,} keys: {name}", us, "µs", detail={"layers": layers})
    value, bar = took[SDPA] / took[LAYER], BARS.get(S)
    why = f"choose takes {took[CHOOSE]:.0f} µs, attention after it {took[ATTENTION]:.0f}, SDPA {took[SDPA]:.0f}"
    yield row(f"{S:,} keys: SDPA over choose and attention", value, "x", bar=bar, why=missed(value, bar, why))


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the result file; a rehearsal writes it to a folder that is forgotten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a short text on any device, interpreted: a rehearsal")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU. With TRITON_INTERPRET=1 and --tiny it runs on any machine.")
    device, sizes = ("cpu", TINY) if args.tiny else ("cuda", LENGTHS)
    label = f"random tensors, {'tiny, fp32' if args.tiny else f'{HEADS} heads, {GROUPS} of keys, of {DIM}, bfloat16'}"
    where, found = SimpleNamespace(device=device), measured(sizes, args.tiny)
    finish(where, found, args, "lookup_kernels", label=label, heading="measured")


if __name__ == "__main__":
    main()
