"""What `hf_longctx.plan` predicts beside what the other benchmarks measured on an H100: bytes and seconds.

python -m recipes.benchmarks.plan        # reads results/*.json, needs no GPU
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from hf_longctx import LMInfinite
from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.options import as_read
from hf_longctx.planning.predict import Job, Prediction, predict
from hf_longctx.planning.shape import build, measure

from .geometries import SIZES
from .reading import RESULTS, TRAINED, K

SMOLLM2 = LlamaConfig(
    **SIZES["SmolLM2-135M"],
    max_position_embeddings=TRAINED,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
)
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=128 * K,
    rope_theta=5e5,
)
MODELS = {"SmolLM2-135M": SMOLLM2, "Llama of 8B geometry": LLAMA_8B}
BYTES, SECONDS = 1.15, 1.5  # what the predictions must hold, as factors


@dataclass(frozen=True)
class Pair:
    """One prediction and its measurement, in the same unit (GiB, s or ms)."""

    what: str
    predicted: float
    measured: float
    unit: str

    @property
    def off(self) -> float:
        """The factor between the two, 1 or more."""
        return max(self.predicted / self.measured, self.measured / self.predicted)


def predicted(config: Any, tokens: int, chunk: int | None = None, n_local: int | None = None) -> Prediction:
    """What the plan says of an H100: stock, or LM-Infinite with a window."""
    meta = build(config)
    shape = measure(meta)
    if n_local is not None:
        shape = as_read(LMInfinite(n_local=n_local), meta, shape)[1]
    return predict(shape, Job(tokens=tokens, machine=MACHINES["h100"], memory_bytes=80 * 10**9), chunk)


def pairs() -> Iterator[Pair]:
    """Everything in `results/` that the plan has a number for."""
    yield from (*_reading(), *_prefill(), *_streaming())
    yield from _decoding("fast_path_decode", "SmolLM2-135M")
    yield from _decoding("fast_path_large", "Llama of 8B geometry")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _reading() -> Iterator[Pair]:
    detail = next(one["detail"] for one in read("lm_infinite_speed")["rows"] if one["what"].endswith("times faster"))
    for key, value in detail.items():
        found = re.fullmatch(r"(stock|LM-Infinite)(?: in chunks of (\d+)k)?, (s|GiB)", key)
        assert found, key
        chunk = int(found[2]) * K if found[2] else 128 * K
        made = predicted(SMOLLM2, 128 * K, chunk, 4 * K if found[1] == "LM-Infinite" else None)
        of = made.read_seconds if found[3] == "s" else made.above_weights_bytes / 2**30
        yield Pair(f"SmolLM2-135M reads 128k tokens: {key}", of, value, found[3])


def _prefill() -> Iterator[Pair]:
    detail = read("fast_path_prefill")["rows"][0]["detail"]
    for who, chunk, window in (("hf_longctx, s", 32 * K, 4 * K), ("stock, s", None, None)):
        for tokens, value in detail[who].items():
            made = predicted(SMOLLM2, int(tokens), chunk or int(tokens), window)
            name = "LM-Infinite, window 4k" if window else "stock"
            yield Pair(f"SmolLM2-135M reads {int(tokens):,} tokens: {name}", made.read_seconds, value, "s")


def _streaming() -> Iterator[Pair]:
    for one in read("fast_path_memory")["rows"]:
        if not one["beside"] or "rounds" in one["what"]:
            continue
        for key, value in list(one["beside"].items())[:2]:  # a plan is for `generate`, which holds the whole prompt
            tokens = int(key.split(" ")[0].replace(",", ""))
            made = predicted(SMOLLM2, tokens, 16 * K, 4 * K).above_weights_bytes / 2**30
            yield Pair(
                f"SmolLM2-135M streams {tokens:,} tokens in chunks of 16k: above the weights", made, value, "GiB"
            )


def _decoding(name: str, model: str) -> Iterator[Pair]:
    for one in read(name)["rows"]:
        found = re.match(r"decoding after ([\d,]+) tokens", one["what"])
        if not found:
            continue
        tokens = int(found[1].replace(",", ""))
        ours = predicted(MODELS[model], tokens, 32 * K, TRAINED)
        stock = predicted(MODELS[model], tokens, tokens)
        for who, seconds, value in (
            ("LM-Infinite, graph", ours.decode_seconds_graph, one["value"]),
            ("stock eager", stock.decode_seconds_eager, one["beside"]["stock eager"]),
            ("stock static + compile", stock.decode_seconds_graph, one["beside"]["stock static + compile"]),
        ):
            if value is not None:
                assert seconds is not None
                yield Pair(f"{model} decodes a token after {tokens:,}: {who}", 1e3 * seconds, value, "ms")


def rows() -> Iterator[dict[str, Any]]:
    """The worst factor of bytes and of seconds, and every pair."""
    every = list(pairs())
    for what, kinds, bar in (("bytes", ("GiB",), BYTES), ("time", ("s", "ms"), SECONDS)):
        of = [pair for pair in every if pair.unit in kinds]
        worst = max(of, key=lambda pair: pair.off)
        name = f"{what}: largest factor between prediction and measurement, of {len(of)} ({worst.what})"
        yield row(name, worst.off, "", bar=f"<= {bar}")
    for pair in every:
        yield row(pair.what, pair.predicted, pair.unit, beside={"measured": pair.measured})


if __name__ == "__main__":
    made = list(rows())
    for one in made[:2]:
        print(one["what"], one["value"], one["bar"], one["holds"])
    label = "predictions for SmolLM2-135M and a Llama of 8B geometry, bfloat16, beside the other tables' measurements"
    data = result_file(made, model=label, device="cpu")
    data |= {"hardware": read("fast_path_decode")["hardware"], "command": "python -m recipes.benchmarks.plan"}
    write_results(RESULTS / "plan.json", data)
