"""Where the time goes that keys in host memory take, as the benchmark of look-ups tells it."""

from __future__ import annotations

from typing import Any

import pytest

from hf_longctx import CodeLookup, stream
from hf_longctx.ops.pinned import POOL, Pinning
from recipes.benchmarks.haystacks import Haystacks
from recipes.benchmarks.retrieval import host_time, large
from tests.evaluation.retrieval_run import made_texts, run_of

GIB = 2**30


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Haystacks:
    return made_texts(tmp_path_factory.mktemp("texts"))


def test_the_detail_of_the_first_token_tells_where_its_time_went(
    texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CodeLookup, "check", lambda self, decoder: None)  # as if there was a GPU
    seen = POOL.seen
    first, *_ = large.large(run_of(texts))
    assert POOL.seen is seen, "what others have counted stays theirs"
    host, window = (first["detail"][name]["where"] for name in ("host", "LM-Infinite"))
    assert set(window) == {"launched by, s", "text read after, s", "with look-ups after, s", "chunks"}
    assert 0 < host["launched by, s"] <= host["text read after, s"] <= host["with look-ups after, s"] <= first["value"]
    assert host["chunks"]["chunks"] == 3, "700 tokens, 512 at a time, and those that look up"
    assert host["chunks"]["longest, s"] >= host["chunks"]["median, s"] > 0
    # a page of keys and one of values in each of 2 layers, which torch makes: there is no GPU
    assert host["pinned"]["pieces that torch pinned"] == 4
    assert host["pinned"]["made by threads, GiB"] == host["pinned"]["waits"] == 0
    assert (host["a chunk"], host["a token"]) == ({}, {}), "nothing that a profiler has seen"


def test_a_text_that_does_not_fit_any_more_leaves_what_was_measured(
    texts: Haystacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(texts)
    with CodeLookup(n_local=64).on(run.model):
        reader = stream(run.model, texts.make(300, 0), bounded=False)

        def full(*_: Any) -> None:
            raise ValueError("0 B are free")

        monkeypatch.setattr("hf_longctx.cache.retrieving.make_room", full)
        assert host_time.of_a_chunk(run, reader) == {"not read": "0 B are free"}


def test_pinning_is_told_in_speeds() -> None:
    with host_time.pinning() as found:
        POOL.seen.made, POOL.seen.touching, POOL.seen.registering = 6 * GIB, 3.0, 1.5
        POOL.seen.waits, POOL.seen.waited, POOL.seen.longest, POOL.seen.again = 3, 0.5, 0.4, GIB
    assert found["made by threads, GiB"] == 6
    assert (found["found, GiB/s of a thread"], found["registered, GiB/s of a thread"]) == (2, 4)
    assert (found["waits"], found["waited, s"], found["longest wait, s"]) == (3, 0.5, 0.4)
    assert found["of an earlier text, GiB"] == 1
    assert not any("GiB/s" in name for name in host_time.told(Pinning()))


def test_copies_and_reads_are_told_from_what_a_device_did() -> None:
    spans = [("gemm", 0.0, 1000.0), ("Memcpy DtoH (Device -> Pinned)", 500.0, 1500.0), ("gemm", 2000.0, 2500.0),
             ("Memcpy DtoH (Device -> Pinned)", 2000.0, 2250.0), ("Memcpy HtoD", 2600.0, 2700.0)]  # fmt: skip
    told = host_time.copies(spans, GIB // 16)
    assert told == {
        "copies to the host": 2, "copies, ms": 1.25, "copies, GiB/s": pytest.approx(50),
        "while nothing else ran, ms": 0.5, "all else, ms": 1.6,
    }  # fmt: skip
    assert host_time.copies(spans[:1], GIB) == {}
    spans = [("_shortlist", 0.0, 40.0), ("_shortlist", 100.0, 160.0), ("_found", 200.0, 210.0), ("_last", 0.0, 9.0)]
    assert host_time.reads(spans, GIB // 10_000, 2) == {
        "_shortlist, µs a layer": 50, "_found, µs a layer": 5,
        "keys of shortlists, GiB/s": pytest.approx(1.0, rel=1e-4),
    }  # fmt: skip
    assert host_time.reads([], GIB, 2) == {}


def test_chunks_are_told_by_the_clock() -> None:
    clock = host_time.Clock()
    assert clock.told() == {}
    clock.times = [0.0, 4.0, 5.0, 6.5, 7.5]
    assert clock.told() == {"first three, s": [4, 1, 1.5], "median, s": 1.25, "longest, s": 4, "chunks": 4}
