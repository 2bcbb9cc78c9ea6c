"""Tiny models with recurrent or convolution layers beside attention, and the sizes that they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import SIZES, build

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
ONE_EXPERT = {"num_local_experts": 2, "num_experts_per_tok": 1}
HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "granitemoehybrid": {**MAMBA, **ONE_EXPERT, "layer_types": ["mamba", "attention"]}
    | {"shared_intermediate_size": 32, "position_embedding_type": "rope"},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "num_experts_per_tok": 1}
    | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "olmo_hybrid": {**LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {**LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "zamba2": {"num_mem_blocks": 1, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 16}
    | {"layers_block_type": ["mamba", "hybrid"], "use_mem_rope": True},
}
ANEW = ("jamba",)  # whose recurrent layers start again with every piece of several tokens


def hybrid(name: str, **changes: Any) -> Any:
    """The tiny model of a row, or of any other family of `SIZES`; skipped where this transformers has none such."""
    try:
        config = AutoConfig.for_model(name, **{**SIZES, **HYBRIDS.get(name, {}), **changes})
    except ValueError as error:
        pytest.skip(str(error))
    model = build(AutoModelForCausalLM.from_config, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 3:  # convolutions
                parameter *= 4
    return model
