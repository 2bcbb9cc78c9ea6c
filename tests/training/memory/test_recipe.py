"""recipes/far/ runs on a CPU, with a tiny model."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes.far import beside, ladder, launching, longest, others
from recipes.far.steps import GIB, Rungs, Step, trained


@pytest.mark.parametrize(("module", "name", "rows"), [(ladder, "far_ladder", 7), (longest, "far_longest", 2)])
def test_smoke(module: object, name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--smoke", "--out", str(tmp_path)])
    module.main()  # type: ignore[attr-defined]
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert len(found["rows"]) == rows
    assert all(row["value"] == 0 and row["beside"]["tokens/s"] > 0 for row in found["rows"]), "no card, but steps"


def test_the_next_rung_does_not_hold_the_weights_of_the_one_before() -> None:
    """A changed model refers to itself, and the name of a `with` block outlives the block."""
    with trained("tiny Llama", Rungs(ladder.LADDER["+ loss in chunks"].memory), 64) as model:
        model.step()
        weight = weakref.ref(model.model.lm_head.weight)
    assert weight() is None
    assert not vars(model)


def test_the_formula_beside_each_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def need(sizes: object, run: object) -> SimpleNamespace:
        asked.append(run)
        return SimpleNamespace(peak=30 * GIB)

    measured = iter([32, 30, 28, 30, 30, 30, 30])
    model = SimpleNamespace(step=lambda: Step(now[0], 0.0, 1.0, True))
    now: list[float] = []

    @contextmanager
    def trained(*_: object) -> Iterator[SimpleNamespace]:
        now[:] = [next(measured)]
        yield model

    monkeypatch.setattr(ladder, "need", need)
    monkeypatch.setattr(ladder, "trained", trained)
    *rungs, summary = ladder.measured("tiny Llama", 1024, False, 1)
    assert [one["beside"]["predicted GiB"] for one in rungs] == [30] * 7
    assert summary["value"] == pytest.approx(2 / 28)
    assert summary["holds"] is False
    assert [(run.kind, run.tile, run.fused_norms, run.offload, run.remat) for run in asked[:7]] == [
        ("stock", None, False, False, None),
        ("stock", None, False, False, None),
        ("auto", None, False, False, None),
        ("auto", 8192, False, False, None),
        ("auto", 8192, True, False, None),
        ("auto", 8192, True, True, None),
        ("auto", 8192, True, True, "attention"),
    ]
    assert [run.chunked_loss for run in asked[:2]] == [False, True]


def test_beside_stock_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/far/beside.py", "--smoke", "--out", str(tmp_path)])
    lines: dict[str, dict[str, object]] = {}

    def run(words: list[str], **kwargs: object) -> SimpleNamespace:
        asked = dict(zip(words[3::2], words[4::2], strict=True))
        found = beside.measure(asked["--line"], asked["--of"], int(asked["--tokens"]), int(asked["--steps"]))
        lines[asked["--line"]] = found
        return SimpleNamespace(stdout=json.dumps(found), stderr="", returncode=0)

    monkeypatch.setattr(
        launching, "subprocess", SimpleNamespace(run=run)
    )  # in this process: it has imported everything
    beside.main(["--smoke", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "far_beside.json").read_text(encoding="utf-8"))
    assert found["command"] == "python -m recipes.far.beside --smoke"
    assert [row["value"] > 0 for row in found["rows"]] == [True] * 3
    assert lines[beside.FAST]["losses"] == pytest.approx(lines[beside.STOCK]["losses"], rel=1e-5)


def test_a_line_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(stdout="", returncode=1, stderr="Traceback\ntorch.OutOfMemoryError: CUDA out of memory.")
    monkeypatch.setattr(launching, "subprocess", SimpleNamespace(run=lambda *args, **kwargs: failed))
    rows = list(beside.measured([beside.STOCK, beside.FAST], "tiny", 1024, 1))
    assert [row["why"] for row in rows] == ["torch.OutOfMemoryError: CUDA out of memory."] * 2


def card_of(
    limit: int, a_token: int = 1000, weights: int = 10**6
) -> tuple[list[int], Callable[[int], dict[str, int | str]]]:
    """Steps on a card with room for `limit` tokens, and the lengths that were tried."""
    tried: list[int] = []

    def attempt(tokens: int) -> dict[str, int | str]:
        tried.append(tokens)
        if tokens > limit:
            return {"out_of_memory": "CUDA out of memory."}
        return {"seconds": tokens, "peak_bytes": 10**6 + 1000 * tokens}

    return tried, attempt


@pytest.mark.parametrize("share", [0.8, 0.93, 0.97, 1.0, 1.02])
def test_the_longest_step_of_others_is_between_one_that_fits_and_one_that_does_not(share: float) -> None:
    """An allocator may have less for a step than its peak says, or a peak may be less than linear."""
    room = 400_000
    tried, attempt = card_of(int(room * share))
    found = others.reach(attempt, (10**6 + 1000 * room) / GIB, short=(1024, 2048), unit=1024)
    fits, fails = ([one["tokens"] for one in found if ("seconds" in one) is fit] for fit in (True, False))
    assert max(fits) <= room * share < min(fails)
    assert min(fails) - max(fits) <= room / others.STEP + 1024
    assert tried == [one["tokens"] for one in found]
    assert len(set(tried)) == len(tried) <= 2 + others.TRIES


def test_others_end_at_once_where_a_short_step_fails() -> None:
    tried, attempt = card_of(100)
    assert [list(one) for one in others.reach(attempt, 1.0)] == [["out_of_memory", "tokens"]] * 2
    assert tried == list(others.SHORT)


def test_others_have_rows_with_the_longest_and_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/far/others.py", "--smoke", "--out", str(tmp_path)])

    def run(words: list[str], **kwargs: object) -> SimpleNamespace:
        asked = dict(zip(words[3::2], words[4::2], strict=True))
        found = others.one_step(asked["--line"], asked["--of"], int(asked["--tokens"]))
        tokens = int(asked["--tokens"])  # nothing counts bytes on a CPU
        if tokens > 3000:
            return SimpleNamespace(stdout='{"out_of_memory": "CUDA out of memory."}', stderr="", returncode=1)
        return SimpleNamespace(stdout=json.dumps(found | {"peak_bytes": tokens * 25 * 10**6}), stderr="", returncode=0)

    monkeypatch.setattr(launching, "subprocess", SimpleNamespace(run=run))
    others.main(["--smoke", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "far_others.json").read_text(encoding="utf-8"))["rows"]
    assert row["what"] == "Llama tiny, all bf16, the longest step of stock Trainer, 1 card of 77 GiB"
    assert (row["value"], row["beside"]["out of memory at"]) == (2816, 3072)
    assert row["beside"]["GiB"] == pytest.approx(2816 * 25 * 10**6 / GIB)


def test_a_step_of_accelerate_has_the_stock_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's context parallelism takes GPUs only; here one process has the whole batch, cut by nothing."""
    losses = []

    class Alone(others.Rival):
        def __init__(self, model: torch.nn.Module, world: SimpleNamespace) -> None:
            self.model, self.world = model, world
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            self.accelerator = SimpleNamespace(maybe_context_parallel=lambda **_: nullcontext())
            model.register_forward_hook(lambda *call: losses.append(call[-1].loss.item()))

    world = SimpleNamespace(
        size=1, gpu=False, device=torch.device("cpu"), dtype=torch.float32, wait=lambda: None, worst=lambda *x: list(x)
    )
    monkeypatch.setattr(others, "Rival", Alone)
    monkeypatch.setattr(others.World, "join", lambda tiny: world)
    found = others.by_accelerate("tiny", 64)
    assert found["seconds"] > 0
    torch.manual_seed(0)
    model = others.AutoModelForCausalLM.from_config(others.MODELS["tiny"], dtype=torch.float32).train()
    ids = torch.randint(3, model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(1))
    assert losses == pytest.approx([model(input_ids=ids, labels=ids).loss.item()])
