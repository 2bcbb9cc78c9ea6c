"""Does an attention function registered without a mask of its name see padding? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_again"


def defect() -> str | None:
    """How far sdpa under a name of its own is from sdpa, on a left-padded row."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(3, 61, (1, 18)), torch.ones(1, 18, dtype=torch.long)
    mask[:, :6] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    AttentionInterface.register(NAME, sdpa_attention_forward)
    try:
        with torch.no_grad():
            right = model(ids, **given).logits[:, 6:]
            model.set_attn_implementation(NAME)
            off = (model(ids, **given).logits[:, 6:] - right).abs().max()
    except ValueError:
        return None  # refused, which is no wrong answer
    finally:
        AttentionInterface._global_mapping.pop(NAME)
    return None if off <= 1e-4 else f"{off:.1e} off: the padding is attended to"


if __name__ == "__main__":
    sys.exit(defect())
