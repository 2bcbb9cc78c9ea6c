"""The geometries that were measured, and small ones of their kind."""

from __future__ import annotations

from transformers import LlamaConfig

from hf_longctx.planning.shape import build
from hf_longctx.planning.train.sizes import TrainingSizes, sizes_of

# 16 layers, 32/8 heads of 64, 1.24B parameters
LLAMA_1B = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True,
)  # fmt: skip


def sizes(config: LlamaConfig = LLAMA_1B) -> TrainingSizes:
    return sizes_of(build(config))
