"""Does sdpa cap Gemma 2's attention scores, as eager attention does? Exits 1 if not, 0 if it does or refuses."""

import sys

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM


def defect() -> str | None:
    """How far the two implementations are apart where scores are past the cap."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, initializer_range=0.3, query_pre_attn_scalar=1, attn_logit_softcapping=2.0,
    )  # fmt: skip
    model, ids = Gemma2ForCausalLM(config).eval(), torch.randint(3, 61, (1, 20))
    with torch.no_grad():
        model.set_attn_implementation("eager")
        right = model(ids).logits
        try:
            model.set_attn_implementation("sdpa")
            off = (model(ids).logits - right).abs().max()
        except ValueError:
            return None  # refused, which is no wrong answer
    return None if off <= 1e-3 else f"sdpa is {off:.1e} off eager"


if __name__ == "__main__":
    sys.exit(defect())
