"""The predictions against what was measured on one H100: bytes within 15 %, seconds within a factor of 1.5."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import hf_longctx
from hf_longctx.planning.hardware import H100_HOST, MACHINES
from hf_longctx.planning.predict import Job, predict
from hf_longctx.planning.shape import build, measure
from recipes.benchmarks.plan import BYTES, SECONDS, SMOLLM2, Pair, pairs, predicted, read, rows

PAIRS = list(pairs())
TOKENS, WINDOW = 128 * 1024, 4 * 1024


def test_the_measurements_are_there_and_of_this_machine() -> None:
    assert len(PAIRS) >= 30
    assert {pair.unit for pair in PAIRS} == {"s", "ms", "GiB"}
    for name in ("lm_infinite_speed", "fast_path_decode", "fast_path_large", "fast_path_prefill", "fast_path_memory"):
        assert "H100" in read(name)["hardware"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.what)
def test_what_was_predicted_was_measured(pair: Pair) -> None:
    assert pair.off <= (BYTES if pair.unit == "GiB" else SECONDS), pair


def test_the_table_is_of_these_predictions() -> None:
    made = {one["what"]: one["value"] for one in rows()}
    committed = {one["what"]: one["value"] for one in read("plan")["rows"]}
    assert made.keys() == committed.keys()
    assert all(value == pytest.approx(committed[what]) for what, value in made.items())


def test_what_a_window_saves_is_what_was_measured() -> None:
    stock, ours = predicted(SMOLLM2, TOKENS, TOKENS), predicted(SMOLLM2, TOKENS, 32 * 1024, WINDOW)
    share = next(row["value"] for row in read("lm_infinite_speed")["rows"] if "share" in row["what"])
    assert ours.above_weights_bytes / stock.above_weights_bytes == pytest.approx(share, rel=0.15)


def test_a_window_decodes_as_fast_after_a_million_tokens_as_after_8k() -> None:
    short, long = (predicted(SMOLLM2, tokens, n_local=WINDOW) for tokens in (8192, 10**6))
    assert short.decode_seconds_graph == long.decode_seconds_graph
    assert long.kv_bytes == short.kv_bytes


def test_constants_are_what_makes_the_predictions() -> None:
    """A change that breaks the calibration fails above: half the attention share does."""
    off = dataclasses.replace(H100_HOST, causal_attention=H100_HOST.causal_attention / 2)
    made = predict(
        measure(build(SMOLLM2)),
        Job(tokens=TOKENS, machine=MACHINES["h100"], memory_bytes=80 * 10**9, calibration=off),
        TOKENS,
    )
    truth = next(pair for pair in PAIRS if pair.what == "SmolLM2-135M reads 131,072 tokens: stock")
    assert made.read_seconds > SECONDS * truth.measured


def test_the_public_name_is_the_function() -> None:
    public: Any = hf_longctx.plan
    assert public(SMOLLM2, "128k").chosen is not None
    assert callable(hf_longctx.plan), "importing its module must not hide it"
