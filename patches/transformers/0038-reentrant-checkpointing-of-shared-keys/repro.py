"""Are the gradients of Gemma 4 the same under reentrant checkpointing? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


def defect() -> str | None:
    """How far the gradients of a layer whose keys another layer reads are off."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        vocab_size=61, vocab_size_per_layer_input=61, hidden_size=32, hidden_size_per_layer_input=8,
        intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        global_head_dim=8, num_kv_shared_layers=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, ids = Gemma4ForCausalLM(config).train(), torch.randint(3, 61, (1, 8))
    weight = model.model.layers[0].self_attn.k_proj.weight
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    gradients = []
    for reentrant in (False, True):
        model.zero_grad()
        enable({"use_reentrant": reentrant})
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(weight.grad.clone())
    right, found = gradients
    off = ((found - right).norm() / right.norm()).item()
    return f"the gradient of keys that another layer reads is off by {off:.0%}" if off > 1e-3 else None


if __name__ == "__main__":
    sys.exit(defect())
