"""torch.compile in one graph, for each way in which attention is reached and keys are rotated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx import LMInfinite, PositionFree
from hf_longctx.anatomy import decoder_layers, find_decoder
from tests.contract.registry import close, equal_in_one_graph
from tests.families.table import model_of
from tests.tiny import logits_of, text

IDS = text(2, 24)


@pytest.mark.parametrize("method", [LMInfinite(n_global=3, n_local=7), PositionFree()], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["deepseek_v3", "falcon", "gptj", "gemma4_text", "llama4_text"])
def test_one_graph_without_a_cache(family: str, method: Any) -> None:
    model = model_of(family)
    method.apply(model)
    equal_in_one_graph(model, lambda one: logits_of(one, IDS, use_cache=False))


@pytest.mark.parametrize("first", ["compiled", "applied"])
@pytest.mark.parametrize("family", ["phi", "gptj"])
def test_layers_that_are_compiled_each_by_itself(family: str, first: str) -> None:
    method = LMInfinite(n_global=3, n_local=7)
    with method.on(model_of(family)) as other:
        wanted = logits_of(other, IDS)
    torch._dynamo.reset()
    model = model_of(family)
    if first == "applied":
        method.apply(model)
    for layer in decoder_layers(find_decoder(model)):
        layer.compile(backend="eager")
    if first == "compiled":
        method.apply(model)
    close(logits_of(model, IDS), wanted)
    torch._dynamo.reset()
