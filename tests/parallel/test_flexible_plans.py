"""Plans of groups: near the optimum, within their capacity, every document once, in bounded work; fitted costs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.parallel.flexible import Group, GroupCosts, plan_micro_batches, plan_step
from hf_longctx.parallel.flexible import greedy as greedily
from hf_longctx.parallel.flexible import plan as planning
from hf_longctx.parallel.flexible.costs import rough_costs
from hf_longctx.parallel.flexible.fitting import calibrated
from hf_longctx.parallel.flexible.laid_out import laid_out
from hf_longctx.parallel.flexible.loads import Load
from hf_longctx.parallel.flexible.search import BoundedSearch
from hf_longctx.parallel.flexible.shapes import shapes_of
from recipes.benchmarks.flexible_groups import DISTRIBUTIONS, documents, optimum, seconds

TAIL = DISTRIBUTIONS["long tail (5k, some far longer)"]
K = 1024


def step(rng: random.Random, count: int) -> list[int]:
    return [min(200 * K, int(rng.lognormvariate(*TAIL)) + 16) for _ in range(count)]


def check(plan: list[Group], lengths: list[int], ranks: int, costs: GroupCosts, capacity: int | None) -> None:
    """Aligned groups of all ranks, of powers of two; every document once; capacity held also by the layout."""
    assert [rank for group in plan for rank in group.ranks] == list(range(ranks))
    for group in plan:
        size = len(group.ranks)
        assert size & (size - 1) == 0
        assert group.ranks[0] % size == 0
        assert group.seconds == pytest.approx(costs.group((lengths[n] for n in group.documents), size))
        assert list(group.documents) == sorted(group.documents)
    assert sorted(n for group in plan for n in group.documents) == list(range(len(lengths)))
    layout, own = laid_out(lengths, plan, "balance", capacity)
    assert sum(layout.sizes) == sum(lengths)
    assert layout.sizes == tuple(size for group in own for size in group.sizes)
    assert sorted(layout.inverse_T.tolist()) == list(range(sum(lengths)))
    if capacity is not None:
        assert max(layout.sizes) <= capacity


def test_within_2_percent_of_the_enumerated_optimum() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ranks = rng.choice([2, 3, 4])
        lengths = step(rng, rng.randrange(1, 7))
        capacity = rng.choice([None, max(sum(lengths) // ranks + rng.randrange(20 * K), max(lengths) // 2 + 1)])
        costs = rough_costs(ranks, rng.choice([2, 8]))
        best = optimum(lengths, ranks, costs, capacity)
        assert best == float("inf") or 0.999999 * best <= seconds(lengths, ranks, costs, capacity) <= 1.02 * best


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 64])
def test_every_document_once_within_capacity(ranks: int) -> None:
    rng = random.Random(1)
    for count in (0, 1, 5, 40, 90):
        lengths = [0, *step(rng, count)] if count else []
        costs = rough_costs(ranks, 8)
        largest = 2 ** (ranks.bit_length() - 1)
        for capacity in (None, max(sum(lengths) // ranks * 5 // 4, max(lengths, default=0) // largest) + 1):
            check(plan_step(lengths, ranks, costs, capacity), lengths, ranks, costs, capacity)


def test_a_power_of_two_of_ranks_holds_whatever_it_can() -> None:
    """All ranks as one group: whatever the documents."""
    lengths, costs = [3, 1, 1, 5, 2], rough_costs(4, 8)
    check(plan_step(lengths, 4, costs, 3), lengths, 4, costs, 3)


def test_all_ranks_plan_alike() -> None:
    lengths = step(random.Random(2), 30)
    assert plan_step(lengths, 8, rough_costs(8, 8)) == plan_step(lengths, 8, rough_costs(8, 8))


def test_long_documents_get_large_groups() -> None:
    plan = plan_step([400 * K, *[8 * K] * 60], 8, rough_costs(8, 8), 64 * K * 2)
    assert len(plan[0].ranks) >= 4
    assert plan[0].documents[0] == 0
    assert plan_step([K] * 64, 8, rough_costs(8, 8)) == [
        Group(range(rank, rank + 1), plan.documents, plan.seconds)
        for rank, plan in enumerate(plan_step([K] * 64, 8, rough_costs(8, 8)))
    ]


@pytest.mark.parametrize("shape", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_never_slower_than_a_fixed_degree(ranks: int, shape: tuple[float, float]) -> None:
    rng, costs = random.Random(3), rough_costs(ranks, 8)
    for _ in range(20):
        lengths = documents(32 * K * ranks, shape, 64 * K, rng)
        fixed = min(seconds(lengths, ranks, costs, None, 2**k) for k in range(ranks.bit_length()))
        assert seconds(lengths, ranks, costs, None) <= 1.02 * fixed


def test_work_of_a_plan_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a clock: how often documents are looked at, for any documents."""
    looks, runs = [], []
    better, greedy = BoundedSearch.better, greedily.greedy

    def counted(self: BoundedSearch, *args: Any) -> Any:
        found = better(self, *args)
        looks.append(planning.LOOKS - self.budget)
        return found

    monkeypatch.setattr(BoundedSearch, "better", counted)
    monkeypatch.setattr(planning, "greedy", lambda *args: runs.append(1) or greedy(*args))
    rng = random.Random(4)
    for count in range(1, 200, 7):
        runs.clear()
        plan_step(step(rng, count), 4, rough_costs(4, 8))
        assert len(runs) <= len(shapes_of(4)) == 4
    assert looks
    assert max(looks) <= planning.LOOKS


@pytest.mark.parametrize(
    ("lengths", "ranks", "capacity", "expected"),
    [
        ([5, 6], 2, 5, "11 tokens in 2 documents, the longest of 6, does not fit 2 ranks of capacity=5"),
        ([9], 3, 4, "a document fits a group of up to 2 ranks"),
        ([3, 3, 3], 3, 3, "no error"),
        ([5, 4], 3, 3, "9 tokens in 2 documents"),  # one of them for two ranks, and the other finds one
        ([-1], 2, None, "expected the tokens of each document, 0 or more"),
        ([1], 0, None, "ranks=0: expected 1 or more"),
        ([1], 2, 0, "capacity=0: expected how many tokens a rank can hold"),
        ([1], 16, None, "costs are of up to 8 ranks"),
    ],
)
def test_what_fits_no_group(lengths: list[int], ranks: int, capacity: int | None, expected: str) -> None:
    try:
        plan_step(lengths, ranks, rough_costs(8, 8), capacity)
        said = "no error"
    except ValueError as error:
        said = str(error)
    assert expected in said


def test_micro_batches_of_a_step() -> None:
    rng, costs, capacity = random.Random(5), rough_costs(4, 8), 40 * K
    for count in (1, 10, 80):
        lengths = [min(n, 4 * capacity) for n in step(rng, count)]
        passes = plan_micro_batches(lengths, 4, costs, capacity)
        assert len(passes) >= sum(lengths) / (4 * capacity)
        assert sorted(n for plan in passes for group in plan for n in group.documents) == list(range(count))
        for plan in passes:  # each is a pass on all four ranks
            own = sorted(n for group in plan for n in group.documents)
            renumbered = [Group(g.ranks, tuple(own.index(n) for n in g.documents), g.seconds) for g in plan]
            check(renumbered, [lengths[n] for n in own], 4, costs, capacity)
    with pytest.raises(ValueError, match="does not fit 4 ranks"):
        plan_micro_batches([5 * capacity], 4, costs, capacity)


def test_the_solver_is_no_worse_than_greedy() -> None:
    pytest.importorskip("scipy")
    rng, costs, gains = random.Random(6), rough_costs(64, 8), []
    for _ in range(3):
        lengths = documents(2 * K * K, TAIL, 900 * K, rng)
        plan = plan_step(lengths, 64, costs, 150_000)
        check(plan, lengths, 64, costs, 150_000)
        greedy = seconds(lengths, 64, costs, 150_000, *(2**k for k in range(7)))
        gains.append(greedy / max(group.seconds for group in plan))
    assert min(gains) >= 1
    assert max(gains) > 1


def test_calibration_with_a_clock_that_knows_the_costs() -> None:
    right = GroupCosts(2e-5, 3e-9, (0.0, 4e-7, 5e-7, 9e-6), (1e-3, 4e-3, 5e-3, 2e-2), "a card")
    clock = [0.0]

    def run(load: Load) -> float:
        took = right.group([load.length] * load.documents, load.ranks)
        clock[0] += took
        return took

    found = calibrated(run, 8, 128 * K, "a card", seconds=20)
    assert 10 < clock[0] < 21
    assert found.token == pytest.approx(right.token, rel=1e-6)
    assert found.pair == pytest.approx(right.pair, rel=1e-6)
    assert found.exchange == pytest.approx(right.exchange, rel=1e-4)
    assert found.fixed == pytest.approx(right.fixed, rel=1e-4)
    noisy = random.Random(7)
    found = calibrated(lambda load: run(load) * (1 + noisy.random() / 50), 8, 128 * K, "a card", seconds=20)
    assert found.token == pytest.approx(right.token, rel=0.05)
    assert found.pair == pytest.approx(right.pair, rel=0.05)


def test_costs_of_another_card_or_of_fewer_ranks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs = GroupCosts(1e-5, 1e-9, (0.0, 1e-7), (0.0, 1e-3), "NVIDIA A100")
    costs.write(file)
    assert GroupCosts.read(file, 2, "NVIDIA A100") == costs
    with pytest.raises(ValueError, match="was measured on NVIDIA A100, and this is NVIDIA H100"):
        GroupCosts.read(file, 2, "NVIDIA H100")
    with pytest.raises(ValueError, match="in groups of up to 2 ranks, and there are groups of 4 here"):
        GroupCosts.read(file, 4, "NVIDIA A100")
    negative = {"token": -1, "pair": 0, "exchange": [0], "fixed": [0], "device": ""}
    for text in ("no json", "[]", "{}", json.dumps(negative)):
        file.write_text(text)
        with pytest.raises(ValueError, match="expected a file that `hf-longctx calibrate` has written"):
            GroupCosts.read(file, 1, "NVIDIA A100")
