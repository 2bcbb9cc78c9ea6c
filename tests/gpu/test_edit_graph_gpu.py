"""Edits from a CUDA graph against the plain path on a GPU."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx.anatomy import find_decoder
from hf_longctx.editing import edit
from hf_longctx.editing.graph import is_checked
from tests.tiny import text, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
EDITS: dict[str, Any] = {
    "insert": lambda ids: [*ids[:2500], *[5] * 20, *ids[2500:]],
    "delete": lambda ids: ids[:2500] + ids[2560:],
    "at the start": lambda ids: [7, 8, *ids],
    "several": lambda ids: [*ids[:900], 9, *ids[950:3000], 4, 4, 4, *ids[3000:3990], 6, *ids[3991:]],
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "smollm3", "gpt_neox"])
def test_a_graph_makes_what_the_plain_path_makes(family: str, caplog: Any) -> None:
    sizes = {"max_position_embeddings": 8192, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    if family == "gpt_neox":
        del sizes["head_dim"]
    model = tiny(family, **sizes)
    with torch.no_grad():  # less sharp: two paths in bf16 would otherwise pick other tokens to look at
        for parameter in model.parameters():
            parameter /= 4 if parameter.dim() == 2 else 1
    model.to("cuda", torch.bfloat16)
    ids = text(1, 4000)[0].tolist()
    before = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([ids], device="cuda"), past_key_values=before, use_cache=True)
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        for _ in range(2):  # the second time nothing is recorded any more
            for change in EDITS.values():
                ours, _ = edit(model, copy.deepcopy(before), ids, change(ids), compiled=True)
                plain, _ = edit(model, copy.deepcopy(before), ids, change(ids), compiled=False)
                for layer, truth in zip(ours.layers, plain.layers, strict=True):
                    for got, expected in ((layer.keys, truth.keys), (layer.values, truth.values)):
                        off = (got.float() - expected.float()).norm() / expected.float().norm()
                        assert off < 2e-2, "bf16, and the two paths round at other places"
    assert "without a CUDA graph" not in caplog.text
    assert is_checked(find_decoder(model))
