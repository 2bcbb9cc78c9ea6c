"""Settings of the tiny models: what every family gets of BASE, and what one needs beyond it.

Norms, heads and widths are unequal where a family allows it: equal ones hide errors.
"""

from __future__ import annotations

from typing import Any

# a family gets those that its config has
BASE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.05,
    # the same under older names
    **dict.fromkeys(("n_embd", "d_model"), 64),
    **dict.fromkeys(("n_layer", "n_layers", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("n_inner", "ffn_dim", "ffn_hidden_size"), 96),
    "rotary_dim": 8,
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "zero_expert_num"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "num_limited_groups"), 1),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_freq", "moe_layer_start_index"), 1),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    "intermediate_size_mlp": 96,
    "moe_latent_size": None,
    "block_size": 16,
    # multi-head latent attention, indexers
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "index_n_heads": 2,
    "num_index_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
    # recurrent layers
    "linear_num_key_heads": 2,
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "adapter_rank", "block_multiple_of"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "num_mem_blocks"), 1),
    **dict.fromkeys(("lru_width", "conv_dim"), 64),
    **dict.fromkeys(("mamba_d_conv", "mamba_dt_rank"), 4),
    "mamba_d_ssm": 128,
    "mamba_expand": 2,
    # Gemma
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 211,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 0,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "query_pre_attn_scalar": 16,
    **dict.fromkeys(("attention_dropout", "embedding_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
}
# of a family with a latent: its keys are one head of both parts, repeated for every query head
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
WINDOW = 32
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": WINDOW}
CAPPED = {"attn_logit_softcapping": 1.5}  # the default would not show in the small logits of these models
RECURRENT = ["linear_attention", "full_attention"] * 2
DROPPED: Any = ...  # a name of BASE that a family must not get

OF_FAMILY: dict[str, dict[str, Any]] = {
    "bamba": {"layer_types": DROPPED, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        **SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v3": {"v_head_dim": 24},
    "deepseek_v4": {
        **{"sliding_window": WINDOW, "head_dim": 16, "num_key_value_heads": 1},
        **{"index_topk": 8, "hc_mult": 2},
    },
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots3_note_text": {
        **{**SLIDING, "num_key_value_heads": 4, "use_dsa": False, "shared_experts_intermediate_size": 32},
        **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 16},
        **{"swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 16},
    },
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "falcon_h1": {"layer_types": DROPPED},
    "gemma2": CAPPED,
    "gemma3n_text": {**SLIDING, "num_kv_shared_layers": 2},
    "gemma4_text": {
        **{**SLIDING, "head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 2},
        "num_global_key_value_heads": 1,
    },
    "gemma4_unified_text": {**SLIDING, "head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 2},
    "granitemoehybrid": {"layer_types": RECURRENT, "position_embedding_type": "rope"},
    "laguna": {"sliding_window": WINDOW},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama4_text": {
        **{"layer_types": ["chunked_attention", "full_attention"] * 2, "attention_chunk_size": WINDOW},
        **{"no_rope_layers": [1, 0, 1, 0], "floor_scale": 8, "interleave_moe_layer_step": 2},
    },
    "mimo_v2_flash": {"v_head_dim": 8},
    "minicpm3": {"v_head_dim": 8},
    "minimax": {"layer_types": RECURRENT},
    "moshi": {"sliding_window": 256, "audio_vocab_size": 211},
    "qwen4_exp_text": {
        **{"ple_layer_ids": [], "ngram_vocab_size_base": 64, "split_ngram_parts": 2, "hc_count": 2, "hc_lowrank": 8},
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32},
        "indexer_compress_ratio": 4,
    },
    "vaultgemma": CAPPED,
    "zamba2": {
        **{"layer_types": DROPPED, "layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mem_rope": True},
        **{"num_key_value_heads": 4, "head_dim": DROPPED, "mamba_headdim": 16, "use_mamba_kernels": False},
    },
    "zaya": {"num_experts_per_tok": 1},
}
