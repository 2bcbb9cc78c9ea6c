"""Ten million tokens on, logits are those at the beginning: nothing is rotated by an angle that fp32 cannot hold."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import hf_longctx.streaming.rebase as rebase
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.streaming.reader import Reader, stream
from tests.tiny import FAMILIES, MORE_FAMILIES, text, tiny

FAR = 10_000_000
# fp32 angles of a few dozen positions; stock is off by 0.002 (half-rotary) to 0.3 at ten million
NEAR_ENOUGH = 1e-4
METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=16),
    "streaming_llm": StreamingLLM(n_sink=2, window=16),
    "position_free": PositionFree(),
}
every_family = pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])


@torch.no_grad()
def called(model: Any, ids_1L: Tensor, start: int) -> Tensor:
    """Logits of direct calls in two chunks, the first one at `start`."""
    cache, logits, at = DynamicCache(config=model.config), [], 0
    for piece in ids_1L.split([40, 24], 1):
        pos = torch.arange(start + at, start + at + piece.shape[1])[None]
        logits.append(model(piece, past_key_values=cache, use_cache=True, position_ids=pos).logits.double())
        at += piece.shape[1]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", [f for f in (*FAMILIES, *MORE_FAMILIES) if f != "gemma3"])  # next test
def test_model_that_starts_far_on(family: str, method: Any) -> None:
    ids = text(1, 64)
    model, exact = tiny(family), tiny(family).double()
    assert off(called(model, ids, FAR), called(model, ids, 0)) > 1e-3, "stock would do"
    with method.on(model), method.on(exact):
        far = called(model, ids, FAR)
        assert off(far, called(model, ids, 0)) < NEAR_ENOUGH
        assert off(far, called(exact, ids, 0)) < NEAR_ENOUGH


def read(model: Any, ids_1L: Tensor, start: int, chunk: int) -> tuple[Tensor, Reader]:
    """Logits after every chunk of a reader that is told that it has read `start` tokens before."""
    reader, logits = stream(model, chunk=chunk), []
    reader._position = reader._start = start
    for piece in ids_1L[0].split(chunk):
        reader.read(piece)
        logits.append(reader.logits.double())
    return torch.stack(logits), reader


@pytest.mark.parametrize(
    "method", [METHODS["lm_infinite"], METHODS["streaming_llm"]], ids=["lm_infinite", "streaming_llm"]
)
@every_family
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_reader_far_on(family: str, method: Any, chunk: int) -> None:
    ids = text(1, 150)
    model, exact = tiny(family), tiny(family).double()
    with method.on(model), method.on(exact):
        far, reader = read(model, ids, FAR, chunk)
        assert reader.position == FAR + 150
        assert off(far, read(exact, ids, 0, chunk)[0]) < NEAR_ENOUGH


@pytest.mark.parametrize(
    ("family", "method"),
    [("gemma3", METHODS["lm_infinite"]), ("gemma3", METHODS["streaming_llm"]), ("mistral", None)],
    ids=["gemma3-lm_infinite", "gemma3-streaming_llm", "stock mistral with windows"],
)
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_rotated_windows_are_moved_back_again_and_again(
    family: str, method: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding-window layers stay transformers' own, and their keys are rotated when they come."""
    ids, changes = text(1, 400), {"num_hidden_layers": 3} | ({"sliding_window": 8} if family == "mistral" else {})
    model, exact = tiny(family, **changes), tiny(family, **changes).double()
    on = contextlib.ExitStack()
    for each in (model, exact) if method is not None else ():
        on.enter_context(method.on(each))
    with on:
        truth, _ = read(exact, ids, 0, chunk)
        monkeypatch.setattr(rebase, "REACH", 2**62)
        unmoved, _ = read(model, ids, FAR, chunk)
        assert off(unmoved, truth) > 1e-2, "nothing to mend"
        monkeypatch.setattr(rebase, "REACH", 60)
        moved, reader = read(model, ids, 0, chunk)
        assert reader._moved_back > 200
        assert reader.position == 400
        assert off(moved, truth) < NEAR_ENOUGH


def test_scaled_rotary_embedding_is_moved_by_its_angle_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """yarn multiplies cosines and sines by a factor, which keys that are rotated again must not get twice."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    ids, changes = text(1, 200), {"sliding_window": 8, "rope_parameters": yarn}
    model, exact = tiny("mistral", **changes), tiny("mistral", **changes).double()
    truth, _ = read(exact, ids, 0, 20)
    monkeypatch.setattr(rebase, "REACH", 60)
    moved, reader = read(model, ids, 0, 20)
    assert reader._moved_back
    assert off(moved, truth) < NEAR_ENOUGH


def off(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())
