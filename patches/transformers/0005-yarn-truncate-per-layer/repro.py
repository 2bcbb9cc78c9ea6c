"""Is YaRN's `truncate` looked at where rope_parameters are per layer type? Exits 1 if not, 0 if it is."""

import sys

import torch
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def flat(truncate: bool) -> torch.Tensor:
    """Frequencies of one rope_parameters for all layers."""
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=512, rope_parameters=yarn(truncate)
    )
    return ROPE_INIT_FUNCTIONS["yarn"](config)[0]


def per_layer(truncate: bool) -> torch.Tensor:
    """Frequencies of the same, for one of two types of layers."""
    local = {"rope_type": "default", "rope_theta": 1e2}
    config = Gemma3TextConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, num_hidden_layers=2, max_position_embeddings=512,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": local, "full_attention": yarn(truncate)},
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS["yarn"](config, layer_type="full_attention")[0]


def yarn(truncate: bool) -> dict:
    """YaRN by 8."""
    return {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
        "truncate": truncate,
    }  # fmt: skip


def defect() -> str | None:
    """Whether truncate=False changes the frequencies per layer type as it does without types."""
    assert not torch.equal(flat(True), flat(False))
    wrong = not torch.equal(per_layer(False), flat(False))
    return "truncate=False changes nothing where rope_parameters are per layer type" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
