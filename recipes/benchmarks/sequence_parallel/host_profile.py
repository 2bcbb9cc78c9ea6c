"""What the host does in a layer of shared attention, on one GPU: milliseconds, operators, and what costs most.

python -m recipes.benchmarks.sequence_parallel.host_profile            # one GPU, 50 s
torchrun --standalone --nproc_per_node 2 -m recipes.benchmarks.sequence_parallel.host_profile    # two, 60 s
python -m recipes.benchmarks.sequence_parallel.host_profile --tiny     # on the CPU, to see that it runs

On one GPU exchanges go to torch's fake process group of two, which sends nothing, so nothing there is NCCL's. Each kind
runs at 8k and with few tokens: where only 8k takes long, no operator is to blame, and the tables of `host_waits`, which
come last, tell what is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from cProfile import Profile
from pathlib import Path
from pstats import Stats
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from hf_longctx.parallel.gradients import gradients
from hf_longctx.parallel.op import _Direct

from .host import FEW, LENGTH, kinds_of, of_kinds
from .host_waits import told
from .world import World

MOST = 15  # lines of what costs most
TIMES = 10  # layers under the profiler
COUNTED = "aten::", "c10d::"


def backward_of(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    """The backward pass of one forward, as often as wanted."""
    out = run()
    grad = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def profiled(work: Callable[[], Any], world: World) -> dict[str, Any]:
    """For one call of `work`: all operators, those that our code calls itself, and microseconds of each name."""
    work()
    world.wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.gpu else [])]
    with profile(activities=activities) as seen:
        for _ in range(TIMES):
            work()
        world.wait()
    operators = [event for event in seen.events() if event.name.startswith(COUNTED)]
    costs = [
        (one.self_cpu_time_total / TIMES, one.count / TIMES, one.key)
        for one in seen.key_averages()
        if one.self_cpu_time_total and one.key != "cudaDeviceSynchronize"  # the one above
    ]
    return {
        "operators": len(operators) / TIMES,
        "called": sum(not _inside(event) for event in operators) / TIMES,
        "costs": sorted(costs, reverse=True)[:MOST],
    }


def functions(run: Callable[[], Tensor], leaves: list[Tensor]) -> dict[str, list[tuple[float, float, str]]]:
    """Microseconds, calls and name of the Python functions that a forward and a backward spend most in, themselves."""
    seen = {"forward": Profile(), "backward": Profile()}
    run()
    for _ in range(TIMES):
        seen["forward"].runcall(run)

    def backward(*given: Any) -> Any:  # it runs in a thread of autograd's
        return seen["backward"].runcall(gradients, *given)

    with mock.patch.object(_Direct, "backward", staticmethod(backward)):
        again = backward_of(run, leaves)
        for _ in range(TIMES):
            again()
    found = {}
    for way, profile_ in seen.items():
        each = [
            (1e6 * own / TIMES, calls / TIMES, f"{Path(file).name}:{line} {name}" if line else name)
            for (file, line, name), (_, calls, own, *_) in Stats(profile_).stats.items()  # type: ignore[attr-defined]
        ]
        found[way] = sorted(each, reverse=True)[:MOST]
    return found


def _inside(event: Any) -> bool:
    """Does another operator call this one?"""
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith(COUNTED):
        parent = parent.cpu_parent
    return parent is not None


def measured(world: World, runs: int) -> dict[str, dict[str, Any]]:
    """By kind: milliseconds at each length, and what the profiler sees of forward and of backward at the last."""
    lengths = (48, 96) if world.tiny else (FEW, LENGTH)
    times = {tokens: of_kinds(world, tokens, runs) for tokens in lengths}
    every, leaves = kinds_of(world, lengths[-1])
    return {
        kind: {
            "ms": {tokens: of[kind] for tokens, of in times.items()},
            "forward": profiled(run, world),
            "backward": profiled(backward_of(run, leaves), world),
            "functions": functions(run, leaves) if kind != "sdpa" else {},
        }
        for kind, run in every.items()
    }


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print it."""
    for kind, one in found.items():
        print(f"\n{kind}")
        for tokens, ms in one["ms"].items():
            print(f"  {tokens} tokens: forward {ms['forward']:.3f} ms, backward {ms['backward']:.3f} ms of the host")
        for way in ("forward", "backward"):
            seen = one[way]
            print(f"  {way}: {seen['operators']:.0f} operators, {seen['called']:.0f} of them called from Python")
            for us, calls, name in seen["costs"]:
                print(f"    {us:8.1f} us  {calls:5.1f} x  {name[:90]}")
        for way, each in one["functions"].items():
            print(f"  {way}, Python functions, with cProfile's own time:")
            for us, calls, name in each:
                print(f"    {us:8.1f} us  {calls:5.1f} x  {name[:90]}")


def main(words: list[str] | None = None) -> None:
    """Measure and print; nothing is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.benchmarks.sequence_parallel.host_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny heads and few tokens on the CPU")
    args = parser.parse_args(words)
    if not (args.tiny or torch.cuda.is_available()):
        parser.error("no GPU: one is needed. --tiny runs on the CPU.")
    if "RANK" in os.environ:
        world = World.join(args.tiny)
    else:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        world = World(0, 2, args.tiny, torch.device("cpu") if args.tiny else torch.device("cuda", 0))
    try:
        found = measured(world, runs=2 if args.tiny else 15)
        if world.rank == 0:
            show(found)
            print("\nWhy many tokens take longer")
        for line in told(world, args.tiny):
            if world.rank == 0:
                print(line, flush=True)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
