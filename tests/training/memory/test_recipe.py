"""recipes/far/ runs on a CPU, with a tiny model."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.far import beside, ladder, longest
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
        return SimpleNamespace(stdout=json.dumps(found), stderr="")

    monkeypatch.setattr(beside, "subprocess", SimpleNamespace(run=run))  # in this process: it has imported everything
    beside.main(["--smoke", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "far_beside.json").read_text(encoding="utf-8"))
    assert found["command"] == "python -m recipes.far.beside --smoke"
    assert [row["value"] > 0 for row in found["rows"]] == [True] * 3
    assert lines[beside.FAST]["losses"] == pytest.approx(lines[beside.STOCK]["losses"], rel=1e-5)


def test_a_line_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(stdout="", stderr="Traceback\ntorch.OutOfMemoryError: CUDA out of memory.")
    monkeypatch.setattr(beside, "subprocess", SimpleNamespace(run=lambda *args, **kwargs: failed))
    rows = list(beside.measured([beside.STOCK, beside.FAST], "tiny", 1024, 1))
    assert [row["why"] for row in rows] == ["torch.OutOfMemoryError: CUDA out of memory."] * 2
