"""Families of transformers, tiny: which ones attention methods serve, and why the others are refused.

A row is a config's settings beyond `tests.tiny.SIZES`. `python -m tests.families` renders the rows into
docs/families.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import SIZES, build

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/families.md"
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
SLICED = "only a slice of each head rotates, cut off before its apply_rotary_pos_emb"


@dataclass(frozen=True)
class Family:
    """One model type.

    Args:
        settings: of its config, beyond those of every tiny model.
        refused: the part of the error that names the reason; None for a family that is served.
        note: what a user of a served family should know.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    note: str = ""


FAMILIES: dict[str, Family] = {
    "arcee": Family(),
    "cohere": Family({"logit_scale": 1.0}),
    "cohere2": Family({**MIXED, "logit_scale": 1.0}, note="its full-attention layers have no rotary embedding"),
    "diffllama": Family(note="attends twice a layer, to halves of its values"),
    "ernie4_5": Family({"head_dim": 8}),
    "exaone4": Family(MIXED, note="its full-attention layers have no rotary embedding where others slide"),
    "gemma": Family({"head_dim": 8}),
    "glm": Family({"head_dim": 8}),
    "glm4": Family({"head_dim": 8}),
    "granite": Family(),
    "jetmoe": Family({"num_local_experts": 4, "num_experts_per_tok": 2}, note="repeats cached keys for its experts"),
    "ministral3": Family({"head_dim": 8}),
    "mixtral": Family({"num_local_experts": 4, "sliding_window": None}),
    "nemotron": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(MIXED),
    "phi3": Family(),
    "qwen2": Family(),
    "qwen3_moe": Family({**EXPERTS, "head_dim": 8}),
    "qwen3_next": Family(
        {**EXPERTS, **LINEAR, "head_dim": 8, "shared_expert_intermediate_size": 16}
        | {"layer_types": ["linear_attention", "full_attention"]},
        note="its linear-attention layers stay as they are",
    ),
    "seed_oss": Family(
        {"head_dim": 8, "attention_dropout": 0.0}, note="set `attention_dropout` to 0: by default it is 0.1"
    ),
    "starcoder2": Family({"sliding_window": None}),
    "deepseek_v3": Family(
        {**LATENT, **ROUTED, "num_key_value_heads": 4, "head_dim": 4},
        refused="multi-head latent attention (MLA) caches compressed keys with a separate rotary part",
    ),
    "gemma2": Family(
        {**MIXED, "head_dim": 8, "query_pre_attn_scalar": 8},
        refused="attention logit soft-capping (50.0) is not supported",
    ),
    "gemma4_text": Family(
        {**MIXED, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 0}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": SIZES["vocab_size"]},
        refused="keys are rotated by apply_rotary_pos_emb(x, cos, sin, unsqueeze_dim), not by one that takes "
        "(q, k, cos, sin)",
    ),
    "gpt_neox_japanese": Family(refused="attends without transformers' attention interface"),
    "gpt_oss": Family(
        {**MIXED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        refused="learned attention sinks (a logit per head) are not supported",
    ),
    "hunyuan_v1_dense": Family(
        {"head_dim": 8},
        refused="It probably post-processes rotated keys, e.g. normalises them",
    ),
    "llama4_text": Family(
        {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 32}
        | {"interleave_moe_layer_step": 2, "attention_chunk_size": 8, "no_rope_layers": [1, 0]}
        | {"layer_types": ["chunked_attention", "full_attention"]},
        refused="keys are rotated by apply_rotary_emb, not by an apply_rotary_pos_emb(q, k, cos, sin)",
    ),
    "persimmon": Family({"num_key_value_heads": 4}, refused=SLICED),
    "phi": Family(refused=SLICED),
    "stablelm": Family(refused=SLICED),
}
SERVED = [name for name, family in FAMILIES.items() if family.refused is None]
REFUSED = [name for name in FAMILIES if name not in SERVED]


def model_of(name: str) -> Any:
    """The tiny model of a row, with unequal norms: a norm of equal weights commutes with a rotation."""
    config = AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name].settings})
    model = build(AutoModelForCausalLM.from_config, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.linspace(0, 1, len(parameter))
    return model


def render() -> str:
    """docs/families.md"""
    lines = [
        "# Families",
        "",
        "Model families of transformers under attention methods (`lm_infinite`, `streaming_llm`, `position_free`). A",
        "tiny model of each is tested. A served one has logits bit-for-bit equal to the stock model's when only the",
        "place of rotation changes, in prefill and in left-padded generation. A refused one raises an error with the",
        "reason, and stays unchanged. Models are recognised by their structure, so others may work too: the self-",
        "check in `apply` decides. Llama, Qwen3, Gemma 3, Mistral, SmolLM3 and GPT-NeoX are served as well, and are",
        "tested by the whole contract.",
        "",
        "Rendered from `tests/families/table.py` by `make tables`.",
        "",
        "| family | attention methods | reason |",
        "| --- | --- | --- |",
    ]
    for name in [*SERVED, *REFUSED]:
        family = FAMILIES[name]
        lines.append(f"| `{name}` | {'refused' if family.refused else 'served'} | {family.refused or family.note} |")
    return "\n".join(lines) + "\n"
