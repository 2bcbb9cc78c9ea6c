"""Why many tokens take more of the host than few: does it wait, for what, or is every launch dearer?

`host_profile` prints it last. What each table tells apart:

1. Host and device by tokens, with exchanges that send all, one row, or nothing. Host time that follows the device's
   only where all is sent is a wait for the exchange, or launches that are dearer beside it. `cpu` below `host`, and
   `slept`, say that the host's thread was put to sleep; a driver that waits in a loop shows in neither.
2. Memory. Blocks that cannot be used again in time are asked of the device, for which the host waits.
3. The other process begins late. A host that launches without waiting takes as long as before; one that waits in a
   launch takes so much longer, and the number of layers says after how many launches.
4. Single calls of the driver. A few long ones are waits; if the median is longer, every launch is dearer.
5. A loop of views in the host's memory. If it is slower while the device works, other threads or the traffic of the
   exchange take the host's time, and no wait is to blame.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hf_longctx.parallel import ranks
from hf_longctx.parallel.peers import Peers, Pending

from . import host
from .world import World

LATE = 0.05  # seconds
IN_A_ROW = (1, 2, 4, 8, 16, 32)
COUNTERS = ("num_device_alloc", "num_device_free", "num_alloc_retries", "allocation.all.allocated")
LINES = (("sdpa", "all"), ("gather", "all"), ("gather", "a row"), ("gather", "none"), ("ring", "all"), ("ring", "none"))


class SendNothing(Peers):
    """Exchanges that launch nothing; what they give has the right size."""

    def shift(self, x: Tensor, tag: int = 0) -> Pending:
        """See `Peers`."""
        return lambda: torch.empty_like(x)

    def gather(self, x: Tensor, ahead: bool = True) -> Pending:
        """See `Peers`."""
        return lambda: x.new_empty(self.size * x.shape[0], *x.shape[1:])

    def scatter_sum(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        return x.new_empty(x.shape[0] // self.size, *x.shape[1:])

    def exchange(self, x: Tensor, send: Sequence[int], receive: Sequence[int], ahead: bool = True) -> Pending:
        """See `Peers`."""
        return lambda: x.new_empty(sum(receive), *x.shape[1:])


class SendARow(SendNothing):
    """The exchanges of `gather`, of one row only: as many calls as with all, and next to nothing sent."""

    def gather(self, x: Tensor, ahead: bool = True) -> Pending:
        """See `Peers`."""
        Peers.gather(self, x[:1], ahead)()
        return super().gather(x, ahead)

    def scatter_sum(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        Peers.scatter_sum(self, x[: self.size])
        return super().scatter_sum(x)


SENT: dict[str, type[Peers]] = {"all": Peers, "a row": SendARow, "none": SendNothing}


class Lap(NamedTuple):
    """One pass on this process: milliseconds of host and device, of the host's thread, and how often that slept."""

    host: float
    device: float
    cpu: float
    slept: float


def lap(world: World, work: Callable[[], Any], late: float = 0.0) -> Lap:
    """Once, all processes together, or the others late."""
    world.wait()
    dist.barrier()
    world.wait()
    if world.rank:
        time.sleep(late)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if world.gpu else []
    for event in events[:1]:
        event.record()
    slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    start, cpu = time.perf_counter(), time.thread_time()
    work()
    taken, cpu = time.perf_counter() - start, time.thread_time() - cpu
    slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - slept
    for event in events[1:]:
        event.record()
    world.wait()
    return Lap(taken * 1e3, events[0].elapsed_time(events[1]) if events else taken * 1e3, cpu * 1e3, slept)


def typical(world: World, work: Callable[[], Any], runs: int, late: float = 0.0) -> Lap:
    """The median of each number, after a first run that does not count."""
    lap(world, work)
    return Lap(*(median(each) for each in zip(*(lap(world, work, late) for _ in range(runs)), strict=True)))


def layers(world: World, tokens: int, kind: str, sent: str, count: int | None = None) -> dict[str, Callable[[], Any]]:
    """Forward and backward of so many layers."""
    with mock.patch.object(ranks, "Peers", SENT[sent]):
        every, leaves = host.kinds_of(world, tokens)
    return dict(zip(("forward", "backward"), host.passes(every[kind], leaves, count), strict=True))


def by_tokens(world: World, lengths: Sequence[int], runs: int) -> Iterator[str]:
    """The first table, and of the longest the second."""
    yield "1. milliseconds a layer: host, device, the host's thread on a CPU, times that it slept"
    memory = []
    for tokens in lengths:
        for kind, sent in LINES:
            said = f"  {tokens:6} tokens  {kind:6} sends {sent:6}"
            for way, work in layers(world, tokens, kind, sent).items():
                found = typical(world, work, runs)
                each = Lap(*(x / host.LAYERS for x in found))
                said += f"  {way}: host {each.host:.3f} device {each.device:.3f}"
                if way == "forward":  # backward has a thread of autograd's
                    said += f" cpu {each.cpu:.3f} slept {each.slept:.1f}"
                if tokens == lengths[-1]:
                    memory.append(f"  {kind:6} sends {sent:6} {way:8} " + blocks_of(world, work))
            yield said
    yield f"2. the allocator in a pass of {host.LAYERS} layers of {lengths[-1]} tokens"
    yield from memory


def blocks_of(world: World, work: Callable[[], Any]) -> str:
    """What the allocator did in a pass."""
    if not world.gpu:
        return "no GPU"
    work()
    before = torch.cuda.memory_stats()
    work()
    after = torch.cuda.memory_stats()
    world.wait()
    return ", ".join(f"{name} {after.get(name, 0) - before.get(name, 0)}" for name in COUNTERS)


def with_late(world: World, lengths: Sequence[int], runs: int) -> Iterator[str]:
    """The third table."""
    yield f"3. milliseconds of the host a pass of gather; then where the other process begins {1e3 * LATE:.0f} ms later"
    for tokens in lengths:
        for count in IN_A_ROW:
            said = f"  {tokens:6} tokens  {count:2} layers"
            for way, work in layers(world, tokens, "gather", "all", count).items():
                prompt, late = (typical(world, work, runs, seconds).host for seconds in (0.0, LATE))
                said += f"  {way}: {prompt:.2f}, {late:.2f}"
            yield said


def of_calls(world: World, lengths: Sequence[int]) -> Iterator[str]:
    """The fourth table."""
    yield "4. calls of the driver and of torch.distributed in forward of gather: a layer, and microseconds of one"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.gpu else [])]
    for tokens in lengths:
        for sent in ("all", "none"):
            work = layers(world, tokens, "gather", sent)["forward"]
            work()
            lap(world, work)
            with profile(activities=activities) as seen:
                for _ in range(3):
                    work()
            world.wait()
            events = [event for event in seen.events() if event.name.startswith(("cu", "c10d::"))]
            on_host = [event for event in events if "CPU" in str(event.device_type)]
            counted = sorted(on_host, key=lambda event: event.time_range.start)[len(on_host) // 3 :]  # not the first
            each: dict[str, list[float]] = {}
            for event in counted:
                each.setdefault(event.name, []).append(event.time_range.elapsed_us())
            for name, us in sorted(each.items(), key=lambda item: -sum(item[1])):
                if sum(us) / host.LAYERS > 1:
                    said = f"  {tokens:6} tokens  sends {sent:6} {name[:32]:32} {len(us) / host.LAYERS / 2:5.1f} x"
                    tenth = sorted(us)[-1 - len(us) // 10]
                    yield f"{said}  median {median(us):.1f}, a tenth above {tenth:.1f}, most {max(us):.1f}"


def of_a_loop(world: World, tokens: int) -> Iterator[str]:
    """The fifth table."""
    taken: list[float] = []

    def loop() -> None:
        start = time.perf_counter()
        host.views()
        taken.append((time.perf_counter() - start) * 1e3)

    def median_after(work: Callable[[], Any]) -> float:
        taken.clear()
        for _ in range(5):
            lap(world, lambda: (work(), loop()))
        return median(taken)

    yield f"5. milliseconds of {host.LOOP} views in the host's memory: device idle, then at work that was just launched"
    for kind, sent in LINES:
        work = layers(world, tokens, kind, sent)["forward"]
        work()
        yield f"  {tokens:6} tokens  {kind:6} sends {sent:6} {median_after(int):.3f}, {median_after(work):.3f}"


def facts(world: World) -> Iterator[str]:
    """What the machine is."""
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("NCCL_", "TORCH_NCCL_", "CUDA_")))
    yield f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPUs, {' '.join(settings) or 'no settings'}"
    if world.gpu:
        cards = torch.cuda.device_count()
        peer = cards > 1 and torch.cuda.can_device_access_peer(0, 1)
        yield f"NCCL {torch.cuda.nccl.version()}, {cards} cards, memory of each other's: {'yes' if peer else 'no'}"


def told(world: World, tiny: bool) -> Iterator[str]:
    """All tables, line by line; every process asks for all of them."""
    lengths, runs = ((48, 96), 2) if tiny else ((512, 2048, 4096, 8192), 5)
    ends = lengths[:: len(lengths) - 1]
    yield from facts(world)
    yield from by_tokens(world, lengths, runs)
    if dist.get_backend() != "fake":
        yield from with_late(world, ends, 3)
    yield from of_calls(world, ends)
    yield from of_a_loop(world, lengths[-1])
