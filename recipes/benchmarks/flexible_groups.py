"""FlexSP's groups of each step: how good the plans are, and what they gain, by the cost model; measured on two cards.

python -m recipes.benchmarks.flexible_groups                    # by the cost model, on a CPU, two minutes
torchrun --nproc_per_node 2 -m recipes.benchmarks.flexible_groups --measure     # on two cards

The cost model is that of a Llama of 1.24B parameters on H100s with full recomputation, NVLink inside hosts of 8 cards
and 25 GB/s for each card between them. The simulated steps are documents of lognormal lengths.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import numpy as np

from hf_longctx.evaluation.rows import row
from hf_longctx.parallel import Layout
from hf_longctx.parallel.flexible import GroupCosts, plan_step
from hf_longctx.parallel.flexible.costs import rough_costs
from hf_longctx.parallel.flexible.shapes import shapes_of
from hf_longctx.parallel.flexible.solver import solver_version
from recipes.outs import RESULT_OPTION

from .reading import K, finish

HOST = 8
DISTRIBUTIONS = {  # lognormal: mean and deviation of the logarithm
    "short documents (3k)": (8.0, 0.5),
    "long tail (5k, some far longer)": (8.5, 1.4),
    "long documents (13k)": (9.5, 1.0),
}
TAIL = DISTRIBUTIONS["long tail (5k, some far longer)"]


def documents(tokens: int, shape: tuple[float, float], most: int, rng: random.Random) -> list[int]:
    """Documents of at most `most` tokens until there are so many tokens; the last one is shortened."""
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(min(int(rng.lognormvariate(*shape)) + 16, most, tokens - sum(lengths)))
    return lengths


def seconds(lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int | None, *sizes: int) -> float:
    """Of the slowest group of a plan; infinite where groups of these sizes do not hold the documents."""
    try:
        return max(group.seconds for group in plan_step(lengths, ranks, costs, capacity, sizes or None))
    except ValueError:
        return float("inf")


def optimum(lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int | None) -> float:
    """Of the best of all assignments to all shapes."""
    best = float("inf")
    for shape in shapes_of(ranks):
        every = np.array(list(itertools.product(range(len(shape)), repeat=len(lengths))))
        worst, fits = np.zeros(len(every)), np.ones(len(every), dtype=bool)
        for group, size in enumerate(shape):
            own = every == group
            number = size.bit_length() - 1
            took = own @ np.array([costs.document(n, size) for n in lengths]) + costs.fixed[number]
            worst = np.maximum(np.maximum(worst, took), costs.least[number])
            if capacity is not None:
                fits &= own @ np.array(lengths) <= capacity * size
        if fits.any():
            best = min(best, float(worst[fits].min()))
    return best


def quality() -> Iterator[dict[str, Any]]:
    """200 steps of 1 to 7 documents on 2 to 4 ranks against the optimum; then how long plans of more documents take."""
    rng = random.Random(0)
    off = []
    while len(off) < 200:
        ranks = rng.choice([2, 3, 4])
        lengths = [min(200 * K, int(rng.lognormvariate(*TAIL)) + 16) for _ in range(rng.randrange(1, 8))]
        capacity = rng.choice([None, max(sum(lengths) // ranks + rng.randrange(20 * K), max(lengths) // 2 + 1)])
        costs = rough_costs(ranks, rng.choice([2, HOST]))
        best = optimum(lengths, ranks, costs, capacity)
        if best < float("inf"):
            off.append(seconds(lengths, ranks, costs, capacity) / best)
    what = "plan over the enumerated optimum, 2 to 4 ranks, the worst of 200 steps of 1 to 7 documents"
    yield row(what, max(off), "", bar="<= 1.02", detail={"mean": mean(off), "each step": off})
    took: dict[str, list[float]] = {}
    for ranks, count in itertools.product((2, 4, 8), (4, 16, 64, 256)):
        for _ in range(20):
            lengths = [min(200 * K, int(rng.lognormvariate(*TAIL)) + 16) for _ in range(count)]
            start = time.process_time()
            plan_step(lengths, ranks, rough_costs(ranks, HOST), max(60 * K, sum(lengths) // ranks * 5 // 4))
            took.setdefault(f"{ranks} ranks, {count} documents", []).append((time.process_time() - start) * 1e3)
    medians = {name: median(ms) for name, ms in took.items()}
    worst = max(ms for name, ms in medians.items() if not name.startswith("8"))
    what = "a plan, 2 and 4 ranks, 4 to 256 documents: the slowest median of 20 steps, of the process's time on a core"
    yield row(what, worst, "ms", bar="<= 5", detail=medians)


def fixed_degrees() -> Iterator[dict[str, Any]]:
    """Two and four ranks of one host: 100 steps of each distribution, against the best of the fixed degrees."""
    for ranks, (name, shape) in itertools.product((2, 4), DISTRIBUTIONS.items()):
        rng, costs = random.Random(1), rough_costs(ranks, HOST)
        steps = [documents(64 * K * ranks, shape, 64 * K * ranks, rng) for _ in range(100)]
        planned = sum(seconds(lengths, ranks, costs, None) for lengths in steps)
        sizes = [size for size in (1, 2, 4) if size <= ranks]
        fixed = {f"degree {d}": sum(seconds(n, ranks, costs, None, d) for n in steps) / planned for d in sizes}
        what = f"{ranks} cards, {name}: time of the best fixed degree over that of groups of each step"
        yield row(what, min(fixed.values()), "x", bar=">= 0.98", beside=fixed)


def laid_out(lengths: Sequence[int], ranks: int, costs: GroupCosts) -> float:
    """Of one group whose layout cuts as few documents as balance needs: only those travel."""
    layout = Layout.of(lengths, ranks)
    busiest = max(
        costs.token * sum(b - a for _, a, b in own) + costs.pair * sum((b - a) * (a + b + 1) / 2 for _, a, b in own)
        for own in layout.pieces
    )
    number = ranks.bit_length() - 1
    exchanged = costs.exchange[number] * sum(lengths[n] for n in layout.shared)
    return max(costs.least[number], costs.fixed[number] + busiest + exchanged)


def simulated() -> Iterator[dict[str, Any]]:
    """64 ranks, the longest document needs a group of 8."""
    ranks, capacity = 64, 150_000
    costs = rough_costs(ranks, HOST)
    longest = int(0.9 * capacity * HOST)
    for tokens, count in ((4_194_304, 20), (2_097_152, 20)):
        rng = random.Random(1)
        one, equal, solver, travels = [], [], [], []
        for _ in range(count):
            lengths = documents(tokens, TAIL, longest, rng)
            greedy = seconds(lengths, ranks, costs, capacity, *(2**k for k in range(7)))
            of_size = {d: seconds(lengths, ranks, costs, capacity, d) for d in (1, 2, 4, 8, 16, 32, 64)}
            one.append(of_size[HOST] / greedy)
            equal.append(min(of_size.values()) / greedy)
            if solver_version() is not None:
                solver.append(greedy / seconds(lengths, ranks, costs, capacity))
            travels.append(best_laid_out(lengths, ranks, costs, capacity) / greedy)
        name = f"64 cards, 8 a host, {count} steps of {tokens / 1e6:.1f}M tokens, long tail, simulated: over"
        yield row(
            f"{name} one degree, which the longest document needs (8)", mean(one), "x", bar=">= 1.5", detail={"x": one}
        )
        yield row(f"{name} the best equal groups of each step", mean(equal), "x", bar=">= 1.25", detail={"x": equal})
        what = f"{name} the best equal groups of each step, where only documents travel that balance cuts"
        yield row(what, mean(travels), "x", detail={"x": travels})
        if solver:
            what = f"{name.removesuffix(': over')}: what scipy's solver gains over the greedy planner"
            yield row(what, mean(solver), "x", detail={"x": solver})


def best_laid_out(lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int) -> float:
    """Equal groups as `SequenceParallel` with a fixed degree lays them out, the best degree of the step."""
    best = float("inf")
    for size in (1, 2, 4, 8, 16, 32, 64):
        try:
            plan = plan_step(lengths, ranks, costs, capacity, (size,))
        except ValueError:
            continue
        best = min(best, max(laid_out([lengths[n] for n in group.documents], size, costs) for group in plan))
    return best


def rows() -> Iterator[dict[str, Any]]:
    yield from quality()
    yield from fixed_degrees()
    yield from simulated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="on the processes that torchrun has started")
    parser.add_argument("--tiny", action="store_true", help="with --measure, a tiny model on any device: a rehearsal")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    args = parser.parse_args()
    if args.measure:
        from .flexible_measured import measure

        measure(args)
        return
    finish(SimpleNamespace(device="cpu"), rows(), args, "flexible_groups", label="cost model of 1.24B on H100s, no GPU")


if __name__ == "__main__":
    main()
