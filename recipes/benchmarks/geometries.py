"""Sizes of the models that benchmarks make at random: those of published models."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "Llama 1.24B": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "SmolLM2-135M": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    },
}
