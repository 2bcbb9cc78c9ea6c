"""What the host does in a layer is shown of every kind, at two lengths, with the exchanges that each of them makes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from recipes.benchmarks.sequence_parallel import host, host_profile

EXCHANGES = {"gather": "c10d::_allgather_base_", "ring": "c10d::send", "ulysses": "c10d::alltoall_base_"}


def test_it_shows_milliseconds_operators_and_what_costs_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "LAYERS", 2)
    monkeypatch.setattr(host_profile, "TIMES", 2)
    monkeypatch.setattr(host_profile, "MOST", 1000)
    host_profile.main(["--tiny"])
    assert not dist.is_initialized()
    stock, *kinds = capsys.readouterr().out.strip().split("\n\n")
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


def test_without_a_gpu_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        host_profile.main([])
    assert "no GPU: one is needed. --tiny runs on the CPU." in capsys.readouterr().err
