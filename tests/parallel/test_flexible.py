"""`degree="auto"`: whatever the groups of a step, loss, logits and gradients are those of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from typer.testing import CliRunner

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer, applied
from hf_longctx.cli.main import app
from hf_longctx.parallel.flexible import GroupCosts, plan
from hf_longctx.parallel.flexible.loads import Load
from hf_longctx.parallel.model import calibration
from hf_longctx.parallel.model.calibration import calibrate
from hf_longctx.training.check import train_check
from tests.hub.tiny import write_gguf

from .models import BATCHES, PACKED, batch, checkpointed, make, off_gradients, relative, stock
from .pool import Pool
from .test_trainer import arguments, compare, launched, one_process, run

EXACT = 1e-5  # rounding of fp32: 2e-6 was seen
AUTO = SequenceParallel(degree="auto", gather_logits=True)


def every_shape(kind: str, cut: str | int, checkpointing: str) -> dict[str, float]:
    """A pack in groups of every shape, one after the other on the same model."""
    off = {}
    loss, logits, grads = stock("gemma3", "packed odd")
    model = make("gemma3")
    if checkpointing:
        checkpointed(model, checkpointing)
    with dataclasses.replace(AUTO, kind=kind, cut=cut).on(model):
        for shape in plan.shapes_of(dist.get_world_size()):
            model.zero_grad()
            with mock.patch.object(plan, "shapes_of", return_value=[shape]):
                out = model(**batch([PACKED]))
            out.loss.backward()
            name = "+".join(map(str, shape))
            off[f"{name} loss"] = abs(out.loss.item() / loss - 1)
            off[f"{name} logits"] = relative(out.logits.detach(), logits)
            off[f"{name} gradients"] = max(off_gradients(model, grads).values())
    return off


@pytest.mark.parametrize(("kind", "cut"), [("auto", "balance"), ("ring", "all"), ("ulysses", 30)])
def test_groups_of_two_ranks_are_one_process(two: Pool, kind: str, cut: str | int) -> None:
    for off in two.run(every_shape, kind, cut, "reentrant"):
        assert len(off) == 2 * 3
        assert max(off.values()) < EXACT, off


@pytest.mark.parametrize(("kind", "cut"), [("auto", "balance"), ("ulysses", "all"), ("hybrid", "all")])
def test_groups_of_four_ranks_are_one_process(four: Pool, kind: str, cut: str) -> None:
    for off in four.run(every_shape, kind, cut, "plain"):
        assert len(off) == 4 * 3
        assert max(off.values()) < EXACT, off


def as_planned() -> dict[str, float]:
    """Batches of every kind in the groups that are planned for them; in some, ranks have no documents."""
    off = {}
    model = make("llama")
    with AUTO.on(model):
        for name, (rows, _) in BATCHES.items():
            loss, logits, grads = stock("llama", name)
            given = batch(rows)
            real = given.get("attention_mask", torch.ones(logits.shape[:2])).bool()
            model.zero_grad()
            out = model(**given)
            out.loss.backward()
            off[f"{name} loss"] = abs(out.loss.item() - loss) / max(loss, 1e-9)
            off[f"{name} logits"] = relative(out.logits[real].detach(), logits[real])
            if loss:
                off[f"{name} gradients"] = max(off_gradients(model, grads).values())
    return off


def test_plans_of_batches_of_every_kind(four: Pool) -> None:
    for off in four.run(as_planned):
        assert max(off.values()) < EXACT, off


LEAST = -(-sum(PACKED) // 4)  # what each of four ranks must hold


def rows_of(capacity: int) -> list[int]:
    """The tokens that each pass through the stock layers has on this rank."""
    model = make("llama")
    passes: list[int] = []
    with dataclasses.replace(AUTO, capacity=capacity).on(model):
        model.model.layers[0].register_forward_pre_hook(lambda layer, args: passes.append(args[0].shape[1]))
        model(**batch([PACKED]))
    return passes


def test_capacity_is_held_and_every_rank_runs_once(four: Pool) -> None:
    for capacity in (LEAST, 50, 100):
        passes = four.run(rows_of, capacity)
        assert all(len(own) == 1 for own in passes)
        assert sum(own[0] for own in passes) == sum(PACKED)
        assert max(own[0] for own in passes) <= capacity


def refusals(free: str) -> list[str]:
    model, said = make("llama"), []
    for fields, mesh in (
        ({"capacity": 20}, None),
        ({"calibration": "nothing.json"}, None),
        ({"calibration": free}, None),
        ({"capacity": 50 + dist.get_rank()}, None),
        ({}, init_device_mesh("cpu", (2,))),
    ):
        try:
            with dataclasses.replace(AUTO, **fields).on(model, mesh):
                model(**batch([PACKED]))
        except ValueError as error:
            said.append(str(error))
        assert applied(model) == []
    return said


def test_refused_on_every_rank(two: Pool, tmp_path: Path) -> None:
    free = tmp_path / "free.json"  # as was written before loads were told from the floor
    GroupCosts(0, 0, (0.0, 1.6e-5), (0.0896, 0.0903), "cpu").write(free)
    for too_little, no_file, no_costs, different, mesh in two.run(refusals, str(free)):
        assert "153 tokens in 7 documents, the longest of 61, does not fit 2 ranks of capacity=20 tokens" in too_little
        assert "nothing.json: expected a file that `hf-longctx calibrate` has written" in no_file
        assert "free.json says that documents take no time (token and pair are 0)" in no_costs
        assert "rank 1 would plan other groups than rank 0" in different
        assert "makes groups of all processes. Leave the mesh out" in mesh


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"degree": "some"}, "degree='some': expected how many processes share a batch, 1 or more, or 'auto'"),
        ({"degree": "auto", "capacity": 0}, "capacity=0: expected how many tokens"),
        ({"degree": 2, "capacity": 9}, "capacity=9 goes with degree='auto' only"),
        ({"calibration": "costs.json"}, "calibration='costs.json' goes with degree='auto' only"),
    ],
)
def test_settings(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SequenceParallel(**fields)


def in_one_process() -> float:
    model = make("llama")
    with AUTO.on(model):
        return float(model(**batch([PACKED])).loss.detach())


def test_one_process_is_a_group_of_one() -> None:
    assert in_one_process() == pytest.approx(stock("llama", "packed odd")[0], rel=EXACT)


def with_trainer() -> dict[str, Any]:
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree="auto"))
        model = make("llama")
        found = run(SequenceParallelTrainer, arguments(folder, parallelism_config=config), model)
        applied(model)[0].undo()
        return found


def test_trainer_takes_the_steps_of_one_process(four: Pool) -> None:
    compare(one_process(1, False), four.run(with_trainer))


def sharded() -> float:
    """FSDP2, whose gathering of weights goes through layers in step while groups exchange by themselves."""
    _, _, grads = stock("llama", "packed odd")
    model = make("llama")
    AUTO.apply(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    off = 0.0
    for shape in [(2, 1, 1), (1, 1, 1, 1)]:
        model.zero_grad()
        with mock.patch.object(plan, "shapes_of", return_value=[shape]):
            model(**batch([PACKED])).loss.backward()
        for name, p in model.named_parameters():
            off = max(off, relative(p.grad.full_tensor(), grads[name]))
    return off


def test_sharded_weights(four: Pool) -> None:
    assert max(four.run(sharded)) < EXACT


def checked() -> list[str]:
    return [found.name for found in train_check(make("llama"), batch([PACKED]), AUTO) if not found.holds]


def test_train_check(two: Pool) -> None:
    assert two.run(checked) == [[], []]


KNOWN = GroupCosts(token=2e-5, pair=3e-7, exchange=(0.0, 4e-6), fixed=(5e-3, 6e-3), device="cpu")


@contextmanager
def known_seconds() -> Iterator[None]:
    """Every pass is run, and takes what known costs say: a busy machine decides no test."""
    run = calibration._seconds

    def seconds(model: Any, load: Load, ranks: int, device: torch.device) -> float:
        assert run(model, load, ranks, device) > 0
        token, pair, exchanged, fixed = load.row(load.ranks)
        size = load.ranks.bit_length() - 1
        return token * KNOWN.token + pair * KNOWN.pair + exchanged * KNOWN.exchange[size] + fixed * KNOWN.fixed[size]

    with mock.patch.object(calibration, "_seconds", seconds):
        yield


def close_to_known(costs: GroupCosts) -> None:
    for name in ("token", "pair", "exchange", "fixed"):
        right = getattr(KNOWN, name)
        if isinstance(right, tuple):
            right = right[: costs.ranks.bit_length()]
        assert getattr(costs, name) == pytest.approx(right, rel=1e-6), name


def measured(folder: str) -> tuple[GroupCosts, GroupCosts, list[float]]:
    """Costs of a tiny model; what is read again; and its loss in groups that they plan."""
    with known_seconds():
        costs = calibrate(make("llama"), tokens=64, seconds=0.1)
    file = Path(folder) / f"costs{dist.get_rank()}.json"
    costs.write(file)
    model = make("llama")
    with dataclasses.replace(AUTO, calibration=str(file)).on(model):
        loss = model(**batch([PACKED])).loss.item()
    return costs, GroupCosts.read(file, 2, "cpu"), [loss]


def test_calibration_on_two_ranks(two: Pool, tmp_path: Path) -> None:
    answers = two.run(measured, str(tmp_path))
    costs = answers[0][0]
    close_to_known(costs)
    assert costs.ranks == 2
    assert costs.device == "cpu"
    assert all(one == again == costs for one, again, _ in answers)
    assert [loss for *_, loss in answers] == [[pytest.approx(stock("llama", "packed odd")[0], rel=EXACT)]] * 2


def all_at_the_floor() -> str:
    """What calibration says where every pass takes what the host launches, and rank 1 would have found costs."""
    model = make("llama")
    fitted = calibration.fitted

    def found(passes: Any, device: str) -> GroupCosts:
        return fitted(passes, device) if dist.get_rank() == 0 else KNOWN

    with (
        mock.patch.object(calibration, "_seconds", lambda model, load, ranks, device: 0.09 + 0.05 * (load.ranks > 1)),
        mock.patch.object(calibration, "fitted", found),
        pytest.raises(ValueError, match="what documents cost was not found") as error,
    ):
        calibrate(model, tokens=64, seconds=0.1)
    assert applied(model) == []
    return str(error.value)


def test_calibration_refuses_the_floor_on_every_rank(two: Pool) -> None:
    here, there = two.run(all_at_the_floor)
    assert here == there
    assert "1 x 64 tokens 0.09 s, 16 x 4 tokens 0.09 s, and the quickest pass took 0.09 s" in here


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from hf_longctx.hub import convert

    model = str(convert(write_gguf(tmp_path / "tiny.gguf"), cache_dir=tmp_path / "cache"))
    file = tmp_path / "costs.json"
    command = ["calibrate", model, "--out", str(file), "--tokens", "64", "--seconds", "1"]
    with mock.patch.object(calibration, "_seconds", return_value=0.09):
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert "Measure longer documents" in " ".join(done.output.split())
    assert not file.exists()
    with known_seconds():
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "us a token" in done.output
    assert "5.083 ms or more a step" in done.output
    close_to_known(GroupCosts.read(file, 1, "cpu"))
