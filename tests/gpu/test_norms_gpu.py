"""Fused norms on a GPU: the values and gradients of stock, in less memory."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longctx import TrainingMemory
from tests.parallel.models import relative
from tests.training.memory.rungs import OFF, step

pytestmark = pytest.mark.gpu
FUSED = TrainingMemory(**OFF | {"fused_norms": True})
CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=1024, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def model(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    with torch.device("cuda"):
        found = LlamaForCausalLM(CONFIG).to(dtype).train()
    for name, p in found.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p)
    return found


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_loss_and_gradients(dtype: torch.dtype, autocast: bool) -> None:
    """In bf16, no further from fp32 than twice what stock is."""
    ids = torch.randint(512, (1, 600), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    given = {"input_ids": ids, "labels": ids}
    right = step(model(dtype).float(), given)
    of = model(dtype)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        stock = step(of, given)
        with FUSED.on(of):
            found = step(of, given)
    assert found[1].keys() == right[1].keys()
    for name, exact in right[1].items():
        ours, theirs = relative(found[1][name], exact), relative(stock[1][name], exact)
        assert ours <= (1e-4 if dtype == torch.float32 and not autocast else 2 * theirs), name
    assert found[0] == pytest.approx(stock[0], rel=1e-2 if autocast or dtype != torch.float32 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_input_and_a_number_a_token_are_kept(dtype: torch.dtype) -> None:
    """Of three norms of 8,192 tokens whose inputs somebody keeps anyway."""
    norms = [layer.input_layernorm for layer in model(dtype).model.layers]
    x = torch.randn(1, 8192, 1024, device="cuda", dtype=dtype, requires_grad=True)
    kept = {}
    for name in ("stock", "fused"):
        of = model(dtype)
        norms = [of.model.norm, *(layer.input_layernorm for layer in of.model.layers)]
        if name == "fused":
            FUSED.apply(of)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        outs = [norm(x) for norm in norms]
        kept[name] = torch.cuda.memory_allocated() - before - sum(out.nbytes for out in outs)
    rows = 3 * 8192
    assert kept["fused"] <= 1.1 * rows * 4 + 4096
    assert kept["stock"] >= rows * 1024 * 4
