"""Does Llama 4 with its vision encoder read a text? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration


def defect() -> str | None:
    """What a forward of token ids raises."""
    text = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 14,
        "image_size": 28, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
    }  # fmt: skip
    config = Llama4Config(text_config=text, vision_config=vision, image_token_index=60)
    model = Llama4ForConditionalGeneration(config).eval()
    try:
        with torch.no_grad():
            model(torch.randint(3, 60, (1, 8)))
    except AttributeError as error:
        return f"AttributeError: {error}"
    return None


if __name__ == "__main__":
    sys.exit(defect())
