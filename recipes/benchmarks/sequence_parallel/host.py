"""What the host does for a layer and for a step at 8k, and how often it waits for the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx import SequenceParallel
from hf_longctx.evaluation.rows import row
from hf_longctx.parallel import Layout, Ranks, attention
from hf_longctx.parallel.model.choosing import Geometry, choose
from hf_longctx.parallel.peers import Peers
from recipes.bars import missed

from ..reading import K
from .geometry import build
from .launching import Launcher
from .packs import batch
from .shared import drawn
from .train import NOT_MEASURED
from .world import World

LENGTH, LAYERS, HEADS = 8 * K, 16, (32, 8)
LOOP = 1000
FEW = 512  # tokens that are no work for the device: where these are faster, at 8k the host was held up by the device
KINDS = ("gather", "ring", "ulysses")
QUICK = ", quickest quarter"
WAITS = "called a synchronizing CUDA operation"  # torch's words under set_sync_debug_mode


VIEWS = f"{LOOP:,} views"  # of a tensor in the host's memory: how fast the host is meanwhile


class Launched(NamedTuple):
    """Milliseconds of the slower process: the median of its runs, and of its quickest quarter."""

    median: float
    quick: float


def launched(world: World, works: dict[str, Callable[[], Any]], runs: int) -> dict[str, Launched]:
    """Milliseconds until the host has launched each of `works`; the device may still be at it.

    They take turns, so that what else the host's machine does meanwhile falls on all alike. Processes are compared by
    what is typical of each: the slower of every single run would have the disturbances of both.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(runs):
        for name, work in works.items():
            world.wait()
            dist.barrier()
            world.wait()
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Launched(*world.worst(median(ms), quantiles(ms, n=4)[0])) for name, ms in times.items()}


def views() -> None:
    """Work of the host alone."""
    x = torch.empty(2, 3)
    for _ in range(LOOP):
        x.transpose(0, 1)


def passes(
    run: Callable[[], Tensor], leaves: list[Tensor], layers: int | None = None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward of many layers one after the other."""
    layers = layers or LAYERS
    outs = [run() for _ in range(layers)]
    grads = [torch.ones_like(out) for out in outs]

    def forward() -> None:
        for _ in range(layers):
            run()

    def backward() -> None:
        torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    return forward, backward


def of_kinds(world: World, tokens: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of host time of a layer by stock, which has no exchange, and by each kind, of one document.

    Medians of all runs, and of the quickest quarter: what the host's machine does besides only adds to them. `VIEWS` is
    milliseconds of work of the host alone, in turn with the others.
    """
    every, leaves = kinds_of(world, tokens)
    works: dict[str, Callable[[], Any]] = {VIEWS: views}
    for kind, run in every.items():
        works[f"{kind} forward"], works[f"{kind} backward"] = passes(run, leaves)
    times = launched(world, works, runs)
    found: dict[str, dict[str, float]] = {kind: {} for kind in every}
    for kind, of in found.items():
        for way in ("forward", "backward"):
            ms = times[f"{kind} {way}"]
            of |= {way: ms.median / LAYERS, f"{way}{QUICK}": ms.quick / LAYERS}
    return found | {VIEWS: times[VIEWS]._asdict()}


def kinds_of(world: World, tokens: int) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """Attention of this process' rows by stock and by each kind, and the tensors that have gradients."""
    layout = Layout.of([tokens], world.size)
    mine = layout.places[world.rank].to(world.device)
    # row by row in memory, as layers have them
    rows = (x.transpose(1, 2)[:, mine].transpose(1, 2) for x in drawn(tokens, HEADS, world)[:3])
    leaves = [x.detach().requires_grad_() for x in rows]
    q, k, v = leaves
    found: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    }
    for kind in KINDS:
        ranks = Ranks(layout, kind, device=world.device)
        found[kind] = lambda ranks=ranks: attention(q, k, v, ranks, scale=q.shape[-1] ** -0.5)[0]  # type: ignore[misc]
    return found, leaves


def of_collectives(world: World, rows: int, q: Tensor, runs: int) -> dict[str, float]:
    """Milliseconds of host time of the exchanges alone that `gather` makes in a layer, below which it cannot come."""
    peers = Peers()
    keys = q.detach().new_empty(rows, HEADS[1], 2 * q.shape[-1])
    table = keys.new_empty(world.size * rows, *keys.shape[1:], dtype=torch.promote_types(q.dtype, torch.float32))

    def forward() -> None:
        for _ in range(LAYERS):
            peers.gather(keys, ahead=False)()

    def backward() -> None:
        for _ in range(LAYERS):
            peers.scatter_sum(table)

    times = launched(world, {"forward": forward, "backward": backward}, runs)
    return {way: ms.median / LAYERS for way, ms in times.items()}


def waits(world: World, work: Callable[[], Any]) -> int | None:
    """How often `work` makes the host wait for the device; None without one."""
    if not world.gpu:
        return None
    work()
    world.wait()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAITS in str(one.message) for one in said)


def work(world: World) -> Iterator[dict[str, Any]]:
    """Host time of attention alone by kind and by stock; then that of a whole step, and its waits."""
    tokens, runs = (96, 2) if world.tiny else (LENGTH, 40)
    found, few = of_kinds(world, tokens, runs), of_kinds(world, tokens if world.tiny else FEW, runs)
    layout = Layout.of([tokens], world.size)
    q = drawn(tokens, HEADS, world)[0]
    auto, _ = choose(layout, Geometry(*HEADS, q.shape[-1], 0, LAYERS))
    collectives = of_collectives(world, layout.sizes[world.rank], q, runs)
    yield {"layer": found, "few": few, "auto": auto, "collectives": collectives}
    yield of_a_step(world, tokens, runs)


def of_a_step(world: World, tokens: int, runs: int) -> dict[str, Any]:
    """Forward and backward of a whole model without DDP or FSDP2, stock over its half of the batch beside.

    The model is narrow: its device has next to nothing to do, so that the host is never held up by a full queue.
    """
    narrow = {"hidden_size": 288, "intermediate_size": 512, "vocab_size": 4096}
    model, shared = (build("Llama 1.24B", world, **narrow) for _ in range(2))
    SequenceParallel(degree=world.size).apply(shared)
    whole, half = (batch([n], model.config.vocab_size, world) for n in (tokens, tokens // world.size))

    def step(of: Any, given: dict[str, Any]) -> None:
        of(**given).loss.backward()
        of.zero_grad(set_to_none=True)

    works: dict[str, Callable[[], Any]] = {
        "stock": lambda: step(model, half | {"use_cache": False}),
        "hf_longctx": lambda: step(shared, whole),
    }
    found = {name: ms.median for name, ms in launched(world, works, runs).items()}
    counts = {name: waits(world, work) for name, work in works.items()}
    return {"step": found, "waits": counts, "layers": model.config.num_hidden_layers}


def rows(launcher: Launcher, geometry: str, tokens: list[int], lines: list[str]) -> Iterator[dict[str, Any]]:
    """Milliseconds of our code in each layer and step, and how often the host waits in a step."""
    at = "8k on two cards, Llama 1.24B"
    for sample in launcher.samples("host", 2):
        if "layer" in sample:
            layer, auto = sample["layer"], sample["auto"]
            ours = {kind: _twice(layer[kind]) - _twice(layer["sdpa"]) for kind in KINDS}
            what = f"{at}: host time of our attention a layer and step ({auto}, what auto takes), above stock's sdpa"
            beside: dict[str, Any] = {f"{kind}, ms": ms for kind, ms in ours.items()}
            quick = _twice(layer[auto], QUICK) - _twice(layer["sdpa"], QUICK)
            beside[f"{auto}, of the quickest quarter of runs, ms"] = quick
            beside[f"{auto} of {FEW} tokens, ms"] = _twice(sample["few"][auto]) - _twice(sample["few"]["sdpa"])
            every = ("sdpa", *KINDS)
            beside |= {f"{kind}, {way} ms": layer[kind][way] for kind in every for way in ("forward", "backward")}
            beside |= {f"{VIEWS}, ms": layer[VIEWS]["median"], f"{VIEWS}{QUICK}, ms": layer[VIEWS]["quick"]}
            floor = _twice(sample["collectives"])
            beside["torch.distributed's calls of gather alone, ms"] = floor
            bar = "<= 1"
            why = missed(ours[auto], bar, f"torch.distributed's own calls take {floor:.2f} ms of it")
            yield row(what, ours[auto], "ms", bar=bar, why=why, beside=beside, detail=sample)
        elif "step" in sample:
            step, counts = sample["step"], sample["waits"]
            above = step["hf_longctx"] - step["stock"]
            what = f"{at}: host time of a whole forward and backward above stock's of half the tokens, for each layer"
            beside = {f"{name}, ms": ms for name, ms in step.items()} | {"above stock in all, ms": above}
            yield row(what, above / sample["layers"], "ms", beside=beside, detail=sample)
            what = f"{at}: times that the host waits for the device in forward and backward"
            why = None if counts["hf_longctx"] is not None else "there is no GPU"
            yield row(what, counts["hf_longctx"], "", bar="<= 1", why=why, beside={"stock": counts["stock"]})
        else:
            yield row(f"{at}: host time", None, "ms", why=sample.get("failed", NOT_MEASURED))


def _twice(of: dict[str, float], quick: str = "") -> float:
    """Forward, forward again for the backward pass, and backward."""
    return 2 * of[f"forward{quick}"] + of[f"backward{quick}"]
