"""A reader on each way in which families rotate and attend: as one forward, near and far, with keys moved back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hf_longctx.streaming.rebase as rebase
from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.streaming.reader import stream
from tests.families.census.looking import RIGHT, distance
from tests.families.table import HERE, model_of
from tests.tiny import logits_of, text

FAR, CHUNK = 10_000_000, 7
IDS = text(1, 150, seed=9)
ENDS = [min(start + CHUNK, 150) - 1 for start in range(0, 150, CHUNK)]
METHODS = [LMInfinite(n_global=2, n_local=16), StreamingLLM(n_sink=2, window=16)]
# stock sliding or chunked layers, which keep rotated keys, beside those of a method
BESIDE_SLIDING = ["cohere2", "olmo3", "gpt_oss", "gemma2", "gemma3n_text", "gemma4_text", "llama4_text",
                  "mimo_v2_flash"]  # fmt: skip
PLAIN = ["phi", "deepseek_v2", "deepseek_v3", "minicpm3", "diffllama", "jetmoe", "falcon", "gptj", "falcon_h1",
         "zamba2", "hrm_text", "lfm2_moe"]  # fmt: skip
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def read(model: Any, start: int = 0) -> Tensor:
    """The logits after each chunk of a reader that is told that it has read `start` tokens before."""
    reader, logits = stream(model, chunk=CHUNK), []
    reader._position = reader._start = start
    for piece in IDS[0].split(CHUNK):
        reader.read(piece)
        logits.append(reader.logits)
    return torch.stack(logits).view(len(ENDS), -1)


@each_method
@pytest.mark.parametrize("family", [name for name in (*BESIDE_SLIDING, *PLAIN, "beam") if name in HERE])
def test_a_reader_is_one_forward(family: str, method: Any) -> None:
    with method.on(model_of(family)) as model:
        assert distance(read(model), logits_of(model, IDS, use_cache=False)[0, ENDS]) < RIGHT


@each_method
@pytest.mark.parametrize("family", [name for name in BESIDE_SLIDING if name in HERE])
def test_sliding_keys_of_any_rotation_are_moved_back(family: str, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    stock = rebase.Rebase._move_back

    def noted(self: Any, module: Any, keys: Tensor, place: int, delta: int) -> Tensor:
        moved.append(delta)
        return stock(self, module, keys, place, delta)

    monkeypatch.setattr(rebase.Rebase, "_move_back", noted)
    with method.on(model_of(family)) as model:
        whole = logits_of(model, IDS, use_cache=False)[0, ENDS]
        assert distance(read(model, FAR), whole) < RIGHT
        monkeypatch.setattr(rebase, "REACH", 64)
        assert distance(read(model), whole) < RIGHT
    assert moved


@each_method
def test_a_model_that_scales_queries_by_their_position_keeps_its_positions(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "beam" not in HERE:
        pytest.skip("this transformers has no beam")
    monkeypatch.setattr(rebase, "REACH", 64)
    with method.on(model_of("beam")) as model:
        assert distance(read(model), logits_of(model, IDS, use_cache=False)[0, ENDS]) < RIGHT
