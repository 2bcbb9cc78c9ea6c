"""The printable table of kernels: every one on every kind of work, one of them chosen."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.ops.kernels import KERNELS
from hf_longctx.ops.kernels.table import SHAPES, table


def test_one_kernel_is_chosen_for_each_kind_of_work_and_refusals_have_reasons() -> None:
    rows = list(table("cpu", torch.float32, chunk=32, heads=(2, 1), head_dim=8))
    assert len(rows) == len(KERNELS) * len(SHAPES)
    for work in SHAPES:
        mine = [row for row in rows if row.work == work]
        (chosen,) = (row for row in mine if row.chosen)
        assert chosen.refused is None
        assert chosen.milliseconds is not None
        assert all(row.refused or row.milliseconds is not None or row.kernel == "flex" for row in mine)


def test_a_slow_kernel_is_not_tried_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    import itertools
    from types import SimpleNamespace
    from typing import Any

    from hf_longctx.ops.kernels import table as module

    def tries(seconds: float) -> int:
        clock = itertools.count(step=seconds)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        calls: list[Any] = []
        kernel: Any = SimpleNamespace(forward=lambda *given: calls.append(given))
        empty: Any = torch.empty(0)
        assert module._time(kernel, empty, empty, empty, empty) == pytest.approx(1e3 * seconds)
        return len(calls) - 1  # the first is no measurement

    assert tries(0.001) == 5
    assert tries(2.0) == 1
