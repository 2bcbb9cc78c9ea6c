"""What `kind="auto"` takes, and that it says why, once."""

from __future__ import annotations

import logging

import pytest
import torch.distributed as dist

from hf_longctx import SequenceParallel
from hf_longctx.parallel import Layout
from hf_longctx.parallel.model.choosing import Geometry, across_hosts, choose
from hf_longctx.parallel.model.groups import ranks_inside

from .models import PACKED, batch, make
from .pool import Pool

LLAMA_8B = Geometry(heads=32, kv_heads=8, head_dim=128, windows=0, layers=32)


@pytest.mark.parametrize(
    ("lengths", "kind", "reason"),
    [
        ([8192], "gather", "8192 tokens take 96 MiB a layer with their gradients, so that one exchange"),
        ([131072], "ring", "131072 tokens take 1536 MiB a layer with their gradients, and attention takes longer"),
        ([1048576, *[1000] * 9], "ring", "the keys of 1048576 tokens"),
        ([5000] * 16, "gather", "every document is whole on one rank"),
    ],
)
def test_by_length(lengths: list[int], kind: str, reason: str) -> None:
    found, why = choose(Layout.of(lengths, 4, "balance"), LLAMA_8B)
    assert found == kind
    assert reason in why


def test_many_short_documents_in_a_ring_for_memory() -> None:
    kind, why = choose(Layout.of([500] * 400, 4, "all"), LLAMA_8B)
    assert kind == "ring"
    assert "2344 MiB a layer with their gradients, more than 2048 MiB" in why


def test_windows_need_few_keys() -> None:
    geometry = Geometry(heads=32, kv_heads=8, head_dim=128, windows=32, layers=32)
    assert choose(Layout.of([1048576], 4), geometry)[0] == "gather"


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert not across_hosts(8, LLAMA_8B)
    assert across_hosts(16, LLAMA_8B)
    assert [ranks_inside(16, heads) for heads in (32, 8, 5, 1)] == [8, 8, 4, 1]
    assert ranks_inside(4, 32) == 2  # one host has them all
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert not across_hosts(16, LLAMA_8B)  # no ranks of a host to exchange heads with


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def logged() -> list[str]:
    handler, logger = Lines(), logging.getLogger("hf_longctx")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    model = make("llama")
    with SequenceParallel(degree=dist.get_world_size()).on(model):
        for pack in ([141], PACKED, [70, 71]):
            model(**batch([pack]))
    logger.removeHandler(handler)
    return [line for line in handler.lines if "takes" in line]


def test_one_line_with_the_reason(two: Pool) -> None:
    one, other = two.run(logged)
    assert other == []
    (line,) = one
    assert line.startswith("SequenceParallel(kind='auto') takes gather: the keys of 141 tokens take")
