"""The predictions against what was measured on one H100: bytes within 15 %, seconds within a factor of 1.5."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import hf_longctx
from hf_longctx import LMInfinite
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.options import as_read
from hf_longctx.planning.predict import Job, Prediction, predict
from hf_longctx.planning.shape import build, measure

ROOT = Path(__file__).parents[2]
SPEED = json.loads((ROOT / "recipes/benchmarks/results/lm_infinite_speed.json").read_text(encoding="utf-8"))
STOCK = json.loads(Path(__file__).with_name("measured_stock.json").read_text(encoding="utf-8"))
SMOLLM2 = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    head_dim=64, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
)  # fmt: skip
BYTES, SECONDS = 1.15, 1.5  # factors
TOKENS, WINDOW = 128 * 1024, 4 * 1024  # of the benchmark's rows
DETAIL: dict[str, float] = next(row["detail"] for row in SPEED["rows"] if row["what"].endswith("times faster"))


def predicted(tokens: int, chunk: int | None = None, n_local: int | None = None) -> Prediction:
    meta = build(SMOLLM2)
    shape = measure(meta)
    if n_local is not None:
        shape = as_read(LMInfinite(n_local=n_local), meta, shape)[1]
    return predict(shape, Job(tokens=tokens, machine=MACHINES["h100"], memory_bytes=80 * 10**9), chunk)


def close(value: float, measured: float, factor: float) -> bool:
    return measured / factor <= value <= measured * factor


def test_the_measurements_are_there_and_of_this_machine() -> None:
    assert {key.split(",")[0].split(" in ")[0] for key in DETAIL} == {"stock", "LM-Infinite"}
    assert len(DETAIL) >= 12
    assert SPEED["hardware"] == STOCK["hardware"]
    assert "H100" in SPEED["hardware"]


@pytest.mark.parametrize("key", DETAIL)
def test_reading_128k_takes_what_the_benchmark_measured(key: str) -> None:
    found = re.fullmatch(r"(stock|LM-Infinite)(?: in chunks of (\d+)k)?, (s|GiB)", key)
    assert found, key
    chunk = int(found[2]) * 1024 if found[2] else TOKENS
    made = predicted(TOKENS, chunk, WINDOW if found[1] == "LM-Infinite" else None)
    if found[3] == "s":
        assert close(made.read_seconds, DETAIL[key], SECONDS), made
    else:  # the benchmark's peaks are above the weights
        assert close(made.above_weights_bytes / 2**30, DETAIL[key], BYTES), made


def test_what_a_window_saves_is_what_was_measured() -> None:
    stock, ours = predicted(TOKENS, TOKENS), predicted(TOKENS, 32 * 1024, WINDOW)
    share = next(row["value"] for row in SPEED["rows"] if "share" in row["what"])
    assert close(ours.above_weights_bytes / stock.above_weights_bytes, share, BYTES)


@pytest.mark.parametrize("tokens", STOCK["prefill_s"])
def test_stock_reads_in_the_time_measured(tokens: str) -> None:
    assert close(predicted(int(tokens), int(tokens)).read_seconds, STOCK["prefill_s"][tokens], SECONDS)


@pytest.mark.parametrize("tokens", STOCK["decode_graph_ms"])
def test_stock_writes_a_token_in_the_time_measured(tokens: str) -> None:
    made = predicted(int(tokens), int(tokens))
    assert made.decode_seconds_graph is not None
    assert close(1e3 * made.decode_seconds_graph, STOCK["decode_graph_ms"][tokens], SECONDS)
    least, most = STOCK["decode_eager_ms"][tokens]
    assert least / SECONDS <= 1e3 * made.decode_seconds_eager <= most * SECONDS


def test_a_window_decodes_as_fast_after_a_million_tokens_as_after_8k() -> None:
    short, long = (predicted(tokens, n_local=WINDOW) for tokens in (8192, 10**6))
    assert short.decode_seconds_graph == long.decode_seconds_graph
    assert long.kv_bytes == short.kv_bytes


def test_constants_are_what_makes_the_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that breaks the calibration fails above: half the attention share does."""
    import dataclasses

    from hf_longctx.planning.hardware import H100_HOST

    off = dataclasses.replace(H100_HOST, causal_attention=H100_HOST.causal_attention / 2)
    made = predict(
        measure(build(SMOLLM2)),
        Job(tokens=TOKENS, machine=MACHINES["h100"], memory_bytes=80 * 10**9, calibration=off),
        TOKENS,
    )
    assert not close(made.read_seconds, DETAIL["stock, s"], SECONDS)


def test_the_public_name_is_the_function() -> None:
    public: Any = hf_longctx.plan
    assert public(SMOLLM2, "128k").chosen is not None
    assert callable(hf_longctx.plan), "importing its module must not hide it"
