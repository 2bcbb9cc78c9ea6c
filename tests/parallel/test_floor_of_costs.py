"""A floor below which no pass goes, the host's launches: costs behind it are found, planned with, or not made up.

The clock is that of two H200s with a Llama of 1.24B: a pass takes the longer of the launches and of the devices' work.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hf_longctx.parallel.flexible import GroupCosts, plan_micro_batches, plan_step
from hf_longctx.parallel.flexible.costs import rough_costs
from hf_longctx.parallel.flexible.fitting import calibrated
from hf_longctx.parallel.flexible.loads import Load
from recipes.benchmarks.flexible_groups import DISTRIBUTIONS, documents, optimum, seconds

TAIL = DISTRIBUTIONS["long tail (5k, some far longer)"]
K = 1024


def card(ranks: int) -> GroupCosts:
    sizes = ranks.bit_length()
    exchange, fixed = (0.0, 2.8e-7, 4.2e-7, 5e-7)[:sizes], (0.0, 4e-3, 5e-3, 6e-3)[:sizes]
    return GroupCosts(23e-6, 1.2e-9, exchange, fixed, "a card", (0.09, 0.14, 0.15, 0.16)[:sizes])


class Clock:
    """Counts passes and their seconds: the right ones, some slower by up to `noise`; the first of a load compiles."""

    def __init__(self, right: GroupCosts, noise: float = 0, seed: int = 0, compiling: float = 0) -> None:
        self.right, self.noise, self.compiling = right, noise, compiling
        self.rng, self.passes, self.seconds = random.Random(seed), dict[Load, int](), 0.0

    def __call__(self, load: Load) -> float:
        disturbed = self.noise * self.rng.random() * (self.rng.random() < 1 / 3)
        took = group(self.right, [load.length] * load.documents, load.ranks) * (1 + disturbed)
        took += self.compiling * (load not in self.passes)
        self.passes[load] = self.passes.get(load, 0) + 1
        self.seconds += took
        return took


def group(costs: GroupCosts, lengths: Sequence[int], ranks: int) -> float:
    """In a group of this card, written out: the longer of what the host and the devices take."""
    size = ranks.bit_length() - 1
    work = sum((costs.token * n + costs.pair * n * (n + 1) / 2) / ranks + costs.exchange[size] * n for n in lengths)
    return max(costs.least[size], costs.fixed[size] + work)


@pytest.mark.parametrize("compiling", [0, 3.0])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_calibration_finds_the_work_behind_the_floor(ranks: int, compiling: float) -> None:
    right = card(ranks)
    clock = Clock(right, compiling=compiling)
    found = calibrated(clock, ranks, 64 * K, "a card")
    assert 18 < clock.seconds - compiling * len(clock.passes) < 20.5
    assert max(load.length for load in clock.passes) >= 32 * K
    assert min(clock.passes.values()) >= 2
    for name in ("token", "pair", "exchange", "fixed", "least"):
        assert getattr(found, name) == pytest.approx(getattr(right, name), rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_with_passes_that_are_disturbed(ranks: int, seed: int) -> None:
    """What is left of noise of up to 30 % of a pass, and plans that are as good as the best fixed degree."""
    right = card(ranks)
    clock = Clock(right, noise=0.3, seed=seed)
    found = calibrated(clock, ranks, 64 * K, "a card")
    assert clock.seconds < 24
    for n in (4 * K, 32 * K):
        assert found.document(n, 1) == pytest.approx(right.document(n, 1), rel=0.1)
    assert found.least == pytest.approx(right.least, rel=0.1)
    for shape in DISTRIBUTIONS.values():
        rng = random.Random(3)
        steps = [documents(32 * K * ranks, shape, 32 * K * ranks, rng) for _ in range(10)]
        of_degree = {d: by_clock(steps, found, right, [d]) for d in (2**k for k in range(ranks.bit_length()))}
        assert by_clock(steps, found, right, None) <= 1.02 * min(of_degree.values())


def by_clock(steps: list[list[int]], costs: GroupCosts, right: GroupCosts, sizes: Sequence[int] | None) -> float:
    """Seconds of steps on this card, planned by some costs."""
    plans = [(step, plan_step(step, 2 ** (costs.ranks.bit_length() - 1), costs, None, sizes)) for step in steps]
    return sum(max(group(right, [step[n] for n in g.documents], len(g.ranks)) for g in plan) for step, plan in plans)


@pytest.mark.parametrize(
    ("tokens", "given", "run"),
    [
        (4 * K, 20, None),  # 0.1 s, and the launches take 0.09
        (64 * K, 1, None),  # not time enough for longer ones
        (64 * K, 20, lambda load: 0.09 + 0.05 * (load.ranks > 1)),
        (64, 0.1, lambda load: 1 / (load.documents * load.length)),  # the longer, the quicker
    ],
)
def test_what_the_floor_hides_is_not_taken_for_free(
    tokens: int, given: float, run: Callable[[Load], float] | None
) -> None:
    for seed in range(10):
        with pytest.raises(ValueError, match="what documents cost was not found") as error:
            calibrated(run or Clock(card(2), noise=0.3, seed=seed), 2, tokens, "a card", given)
    for part in ("on one process, 1 x", "the quickest pass took", "more `tokens`, and more `seconds`", "degree=1"):
        assert part in str(error.value)


def test_the_floor_of_each_load_on_a_card_that_holds_little() -> None:
    """Just enough tokens to rise above the floor: costs of documents, and groups that are not better than they are."""
    found = calibrated(Clock(card(2)), 2, 8 * K, "a card")
    assert found.token == pytest.approx(23e-6, rel=1e-6)
    assert found.pair == pytest.approx(1.2e-9, rel=1e-6)
    assert found.least == pytest.approx((0.09, 0.14))


def floors(ranks: int, rng: random.Random) -> GroupCosts:
    """Rough costs with a floor of up to what a step takes, which rises with the size of a group."""
    costs = rough_costs(ranks, rng.choice([2, 8]))
    steps = sorted(10 ** rng.uniform(-2, 1) for _ in costs.fixed)
    return dataclasses.replace(costs, least=tuple(steps))


def test_plans_with_a_floor_are_within_2_percent_of_the_enumerated_optimum() -> None:
    rng, decided = random.Random(0), 0
    for _ in range(150):
        ranks = rng.choice([2, 3, 4])
        lengths = [min(200 * K, int(rng.lognormvariate(*TAIL)) + 16) for _ in range(rng.randrange(1, 7))]
        capacity = rng.choice([None, max(sum(lengths) // ranks + rng.randrange(20 * K), max(lengths) // 2 + 1)])
        costs = floors(ranks, rng)
        best = optimum(lengths, ranks, costs, capacity)
        assert best == float("inf") or 0.999999 * best <= seconds(lengths, ranks, costs, capacity) <= 1.02 * best
        decided += best in costs.least
    assert 20 < decided < 130


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_below_the_floor_the_smallest_groups_are_taken(ranks: int) -> None:
    rising = tuple(0.09 + 0.05 * k for k in range(5))
    costs = dataclasses.replace(rough_costs(16, 16), least=rising)
    for lengths in ([], [500], [500] * 8):
        plan = plan_step(lengths, ranks, costs)
        assert [len(group.ranks) for group in plan] == [1] * ranks
        assert {group.seconds for group in plan} == {0.09}
    # and not the largest: a document that two ranks would share in less time than they launch
    assert len(plan_step([3 * K], ranks, costs)[0].ranks) == 1


def test_on_many_ranks() -> None:
    """Where the solver, if there is one, finds shapes: no group is below its floor, and large ones must be worth it."""
    lengths = documents(1024 * K, TAIL, 400 * K, random.Random(6))
    for least in (0.0, 0.5, 5.0):
        costs = dataclasses.replace(rough_costs(64, 8), least=(0.01, *(least,) * 6))
        plan = plan_step(lengths, 64, costs, 150_000)
        for g in plan:
            own = [lengths[n] for n in g.documents]
            assert g.seconds == pytest.approx(group(costs, own, len(g.ranks)))
        fixed = [seconds(lengths, 64, costs, 150_000, 2**k) for k in range(7)]
        assert max(g.seconds for g in plan) <= 1.02 * min(fixed)


def test_passes_of_a_step_are_no_more_than_needed_where_each_has_its_floor() -> None:
    lengths, costs = [400] * 20, dataclasses.replace(rough_costs(2, 2), least=(1.0, 1.0))
    assert len(plan_micro_batches(lengths, 2, costs, 4000)) == 1
    assert len(plan_micro_batches(lengths, 2, costs, 3000)) == 2


def test_files_with_and_without_a_floor(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    card(2).write(file)
    assert GroupCosts.read(file, 2, "a card") == card(2)
    older = json.loads(file.read_text())
    del older["least"]
    file.write_text(json.dumps(older))
    assert GroupCosts.read(file, 2, "a card") == dataclasses.replace(card(2), least=(0.0, 0.0))
    file.write_text(json.dumps(older | {"least": [0.1]}))
    with pytest.raises(ValueError, match="one of `exchange`, of `fixed` and of `least` for each size of group"):
        GroupCosts.read(file, 2, "a card")
    file.write_text(json.dumps(older | {"token": 0, "pair": 0}))
    with pytest.raises(ValueError, match=r"documents take no time .* Run `hf-longctx calibrate` again"):
        GroupCosts.read(file, 2, "a card")
