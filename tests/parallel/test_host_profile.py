"""What the host does in a layer is shown of every kind, at two lengths, with the exchanges that each of them makes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist

from recipes.benchmarks.sequence_parallel import host, host_profile, host_waits
from recipes.benchmarks.sequence_parallel.world import World

from .pool import Pool

EXCHANGES = {"gather": "c10d::_allgather_base_", "ring": "c10d::send", "ulysses": "c10d::alltoall_base_"}


def test_it_shows_milliseconds_operators_and_what_costs_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "LAYERS", 2)
    monkeypatch.setattr(host_profile, "TIMES", 2)
    monkeypatch.setattr(host_profile, "MOST", 1000)
    host_profile.main(["--tiny"])
    assert not dist.is_initialized()
    stock, *kinds, tables = capsys.readouterr().out.strip().split("\n\n")
    assert tables.startswith("Why many tokens take longer")
    for number in (1, 2, 4, 5):  # the third needs two processes
        assert f"\n{number}. " in tables
    for kind, sent in host_waits.LINES:
        assert tables.count(f" tokens  {kind:6} sends {sent:6}  forward: host ") == 2
    assert re.search(r"96 tokens  sends all    c10d::_allgather_base_ +1.0 x  median ", tables)
    assert "sends none   c10d" not in tables
    assert stock.startswith("sdpa")
    assert [part.splitlines()[0] for part in kinds] == list(host.KINDS)
    for part in kinds:
        kind, few, many, *lines = part.splitlines()
        assert few.startswith("  48 tokens: forward ")
        assert many.startswith("  96 tokens: forward ")
        assert any(line.endswith(EXCHANGES[kind]) and " 0.0 x" not in line for line in lines)
        assert sum("called from Python" in line for line in lines) == 2
        assert sum("Python functions" in line for line in lines) == 2
        assert any(" gradients.py:" in line for line in lines)


def late(seconds: float) -> list[str]:
    world = World(dist.get_rank(), 2, True, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_waits, "LATE", seconds)
        patch.setattr(host_waits, "IN_A_ROW", (1, 3))
        return list(host_waits.with_late(world, (48,), 1))


def test_a_host_that_waits_for_the_other_process_is_seen(two: Pool) -> None:
    delay = 0.4
    (_, *first), _ = two.run(late, delay)  # gloo's exchanges wait for what they exchange
    assert [line.split("layers")[0].split() for line in first] == [["48", "tokens", "1"], ["48", "tokens", "3"]]
    for line in first:
        prompt, waited = (float(x) for x in re.findall(r"forward: ([\d.]+), ([\d.]+)", line)[0])
        # its clock begins when it leaves the barrier, which may be some milliseconds after the other has
        assert waited > 1e3 * delay / 2
        assert waited > prompt


def test_without_a_gpu_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        host_profile.main([])
    assert "no GPU: one is needed. --tiny runs on the CPU." in capsys.readouterr().err
