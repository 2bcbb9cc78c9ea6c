"""Do packed documents see each other where the mask is all ones, as collators make it? Exits 1 if they do, 0 if not."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """How far the second document of a pack is from the same document alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    first, second = torch.randint(3, 61, (1, 10)), torch.randint(3, 61, (1, 12))
    packed, ones = torch.cat([first, second], 1), torch.ones(1, 22, dtype=torch.long)
    positions = torch.cat([torch.arange(10), torch.arange(12)])[None]
    with torch.no_grad():
        alone = model(second, use_cache=False).logits
        apart = model(packed, position_ids=positions, use_cache=False).logits[:, 10:] - alone
        leak = model(packed, position_ids=positions, attention_mask=ones, use_cache=False).logits[:, 10:] - alone
    assert apart.abs().max() < 1e-4, "also wrong without a mask"
    return (
        None
        if leak.abs().max() <= 1e-4
        else f"{leak.abs().max():.1e} off with a mask of ones, {apart.abs().max():.1e} without"
    )


if __name__ == "__main__":
    sys.exit(defect())
