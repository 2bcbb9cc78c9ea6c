"""Sizes of the models that benchmarks make at random: those of published models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

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


def random_llama(config: Any, device: str, dtype: torch.dtype) -> Any:
    """A Llama of random weights, in eval mode and without gradients, made on its device.

    Norms are ones, as before training: with weights near zero no layer would add to what the first one reads, and all
    keys of a token would be alike, wherever it stands.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval().requires_grad_(False)
