"""Tiny models and batches for the switch, and what one stock process makes of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from hf_longctx import SequenceParallel
from hf_longctx.upstream.checkpointing import enable_checkpointing

BASE: dict[str, Any] = {
    **{"vocab_size": 97, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 512},
    "tie_word_embeddings": False,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**BASE)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**BASE, use_sliding_window=True, sliding_window=11, max_window_layers=1)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**BASE, sliding_window=40, query_pre_attn_scalar=8, layer_types=MIXED)
    ),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**BASE, no_rope_layers=[1, 0, 1])),
}
MORE = {"mixtral": lambda: MixtralForCausalLM(MixtralConfig(**BASE, num_local_experts=4, num_experts_per_tok=2))}
PACKED = [61, 3, 1, 40, 17, 2, 29]
BATCHES: dict[str, tuple[list[list[int]], str | int]] = {  # documents of each row, and which are cut
    "dense odd": ([[141]], "all"),
    "packed odd": ([PACKED], "all"),
    "short whole": ([PACKED], 30),
    "rows": ([[33], [5], [20]], "balance"),
    "packed rows": ([[20, 13], [5], [8, 1, 11]], "all"),
    "fewer tokens than ranks": ([[3]], "all"),
}


def make(name: str, heads: tuple[int, int] = (9, 3)) -> Any:
    """A model whose attention is far from uniform, in train mode."""
    torch.manual_seed(0)
    with mock.patch.dict(BASE, num_attention_heads=heads[0], num_key_value_heads=heads[1], hidden_size=heads[0] * 8):
        model = (MODELS | MORE)[name]()
    for p in model.parameters():
        if p.ndim == 2:
            p.data.mul_(6)
    return model.train()


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    """Packed rows, padded on the right; some labels are left out, and the first of each document predicts nothing."""
    generator = torch.Generator().manual_seed(2)
    width = max(map(sum, rows))
    shape = len(rows), width
    ids = torch.randint(3, 97, shape, generator=generator)
    mask, pos = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, lengths in enumerate(rows):
        mask[row, : sum(lengths)] = 1
        pos[row, : sum(lengths)] = torch.cat([torch.arange(n) for n in lengths])
    keep = (torch.rand(shape, generator=generator) > 0.3) & (pos > 0) & mask.bool()
    given = {"input_ids": ids, "labels": ids.where(keep, -100)}
    if any(len(lengths) > 1 for lengths in rows):
        given["position_ids"] = pos
    return given | {"attention_mask": mask} if len(rows) > 1 else given


@functools.cache
def stock(name: str, what: str, heads: tuple[int, int] = (9, 3)) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Loss, logits and every gradient of one process, which runs each document by itself: nothing can leak."""
    rows = BATCHES[what][0]
    given, model = batch(rows), make(name, heads)
    items = (given["labels"][:, 1:] != -100).sum()
    logits = torch.zeros(*given["input_ids"].shape, 97)
    loss = torch.zeros(())
    for row, lengths in enumerate(rows):
        at = 0
        for n in lengths:
            part = {key: given[key][row : row + 1, at : at + n] for key in ("input_ids", "labels")}
            out = model(**part, use_cache=False, num_items_in_batch=items.clamp(min=1))
            logits[row, at : at + n] = out.logits[0].detach()
            loss = loss + out.loss
            at += n
    loss.backward()
    grads = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    return float(loss.detach()), logits, grads


@dataclass(frozen=True)
class Case:
    model: str
    batch: str
    kind: str
    checkpointing: str = ""
    heads: tuple[int, int] = (9, 3)

    def __str__(self) -> str:
        heads = f"{self.heads[0]}/{self.heads[1]}"
        return "-".join(filter(None, (self.model, self.batch, self.kind, heads, self.checkpointing))).replace(" ", "_")


def lora(model: Any) -> Any:
    """The model with adapters that change it."""
    torch.manual_seed(5)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def checkpointed(model: Any, kind: str, **more: Any) -> None:
    """Turn gradient checkpointing on: "reentrant" or "plain"."""
    enable_checkpointing(model, {"use_reentrant": kind == "reentrant", **more})


def on_a_rank(case: Case) -> dict[str, float]:
    """How far a rank is from one process: its loss, its logits, and the mean over ranks of its gradients."""
    rows, cut = BATCHES[case.batch]
    model = make(case.model, case.heads)
    if case.checkpointing:
        checkpointed(model, case.checkpointing)
    switch = SequenceParallel(degree=dist.get_world_size(), kind=case.kind, cut=cut, gather_logits=True)
    with switch.on(model):
        out = model(**batch(rows))
        out.loss.backward()
    loss, logits, grads = stock(case.model, case.batch, case.heads)
    real = batch(rows).get("attention_mask", torch.ones(logits.shape[:2])).bool()
    off = {"loss": abs(out.loss.item() - loss) / abs(loss), "logits": relative(out.logits[real].detach(), logits[real])}
    return off | off_gradients(model, grads)


def off_gradients(model: Any, grads: dict[str, Tensor]) -> dict[str, float]:
    """The relative error of every gradient, of the mean over all ranks, as DDP takes it."""
    off = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        dist.all_reduce(p.grad)
        off[name] = relative(p.grad / dist.get_world_size(), grads[name])
    return off


def relative(got: Tensor, right: Tensor) -> float:
    return float((got.detach() - right).norm().detach() / right.detach().norm().clamp(min=1e-30))
