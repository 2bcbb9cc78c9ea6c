"""How many tokens of a text a forward pass reads, where nobody says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite, stream
from hf_longctx.streaming.chunks import LEAST, MOST, WORK, default_chunk
from tests.tiny import text, tiny


def model_of(parameters: float, device: str = "cuda") -> Any:
    """A model of so many parameters, as far as a chunk depends on it."""
    return SimpleNamespace(device=torch.device(device), num_parameters=lambda: int(parameters))


def served(model: Any) -> DynamicCache:
    """Its cache under a method, nothing read yet."""
    with LMInfinite(n_local=16).on(model):
        return stream(model).cache


def test_a_small_model_reads_more_at_once_on_a_gpu() -> None:
    cache = served(tiny())
    sizes = {parameters: default_chunk(model_of(parameters), cache) for parameters in (1e6, 135e6, 270e6, 8e9, 4e11)}
    assert sizes == {1e6: MOST, 135e6: MOST, 270e6: 32768, 8e9: LEAST, 4e11: LEAST}
    for parameters, tokens in sizes.items():
        assert tokens == LEAST or 2 * parameters * tokens <= WORK


def test_everything_else_reads_as_before() -> None:
    """On a CPU, and where stock attention would hold a mask of a chunk's square."""
    model = tiny()
    assert default_chunk(model_of(1e6, "cpu"), served(model)) == LEAST
    assert default_chunk(model_of(1e6), stream(model, bounded=False).cache) == LEAST
    mixed = tiny("gemma3")
    kinds = {type(layer) for layer in served(mixed).layers}
    assert len(kinds) > 1, "some of its layers are stock's"
    assert default_chunk(model_of(1e6), served(mixed)) == LEAST
    assert default_chunk(model_of(1e6), DynamicCache()) == LEAST


def test_the_result_does_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(), text(1, 90)[0]
    logits = []
    with LMInfinite(n_local=16).on(model):
        for chunk in (None, 64, 7):
            reader = stream(model, ids, chunk=chunk)
            assert reader.chunk == chunk or (chunk is None and reader.chunk == LEAST)
            logits.append(reader.logits)
        monkeypatch.setattr("hf_longctx.streaming.reader.default_chunk", lambda model, cache: 32)
        seen: list[int] = []
        reader = stream(model, ids, progress=seen.append)
        assert seen == [32, 64, 90]
    for found in (*logits[1:], reader.logits):
        torch.testing.assert_close(found, logits[0], rtol=1e-4, atol=1e-4)
