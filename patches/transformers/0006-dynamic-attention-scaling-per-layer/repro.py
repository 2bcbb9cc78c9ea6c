"""Is the attention scaling that a dynamic RoPE type finds for a longer text used? Exits 1 if not, 0 if it is."""

import sys

import torch
from transformers import Gemma3TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

NAME = "grows_dynamic"


def grows(config, device=None, seq_len=None, layer_type=None, **kwargs):
    """A dynamic type whose scaling grows with the text."""
    return torch.ones(8), 1.0 if seq_len is None else 1.5


def defect() -> str | None:
    """The scaling that the rotary embedding of one layer type uses, against what was found."""
    ROPE_INIT_FUNCTIONS[NAME] = grows
    try:
        config = Gemma3TextConfig(
            hidden_size=64, num_attention_heads=4, head_dim=16, num_hidden_layers=2, max_position_embeddings=8,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
                "full_attention": {"rope_type": NAME, "rope_theta": 1e4, "factor": 2.0},
            },
        )  # fmt: skip
        cos, _ = Gemma3RotaryEmbedding(config)(torch.zeros(1, 1), torch.arange(20)[None], "full_attention")
    finally:
        del ROPE_INIT_FUNCTIONS[NAME]
    used = cos[0, 0, 0].item()  # cos(0) times the scaling
    return f"scaled by {used:.2f}, found 1.50" if abs(used - 1.5) > 1e-3 else None


if __name__ == "__main__":
    sys.exit(defect())
