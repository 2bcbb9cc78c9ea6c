"""Does MiniMax write the same after a padded prompt with a cache? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM


def defect() -> str | None:
    """How far the logits of cached steps after padding are off."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, block_size=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=None, layer_types=["linear_attention", "full_attention"], initializer_range=0.3,
    )  # fmt: skip
    model, ids = MiniMaxForCausalLM(config).eval(), torch.randint(3, 61, (1, 9))
    padded = torch.nn.functional.pad(ids, (5, 0))
    asked = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def steps(cached: bool) -> torch.Tensor:
        found = model.generate(padded, attention_mask=(padded > 0).long(), use_cache=cached, **asked)
        return torch.stack(found.logits)

    right, found = steps(cached=False), steps(cached=True)
    off = (found - right).abs().max().item()
    return f"logits of cached steps differ by {off:.1g}" if off > 1e-3 else None


if __name__ == "__main__":
    sys.exit(defect())
