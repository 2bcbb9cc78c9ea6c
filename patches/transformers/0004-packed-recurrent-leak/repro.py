"""Do recurrent states and convolutions silently run on into the next packed document? Exits 1 if so, else 0."""

import sys

import torch
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "Mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=61, hidden_size=32, num_heads=8, head_dim=8, state_size=8, n_groups=1, num_hidden_layers=2,
            chunk_size=8,
        )
    ),
    "Qwen3-Next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **SIZES | {"num_hidden_layers": 4}, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
            linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16,
        )
    ),
    "LFM2": lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])),
}  # fmt: skip


def defect() -> str | None:
    """How far the second document of a pack is from the same document alone."""
    off = {}
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build().eval()
        first, second = torch.randint(3, 61, (1, 10)), torch.randint(3, 61, (1, 12))
        positions = torch.cat([torch.arange(10), torch.arange(12)])[None]
        with torch.no_grad():
            packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits[:, 10:]
            off[name] = (packed - model(second, use_cache=False).logits).abs().max().item()
    wrong = [f"{name} {far:.1e}" for name, far in off.items() if not far <= 1e-4]
    return f"off by: {', '.join(wrong)}" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
