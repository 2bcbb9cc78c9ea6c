"""Does a forward that continues from a cache count on from it? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import BambaConfig, BambaForCausalLM, MiniMaxConfig, MiniMaxForCausalLM

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def off_by(model: torch.nn.Module, **given: torch.Tensor) -> float:
    """How far the last 8 of 24 tokens are from the whole text, read after the first 16."""
    ids = torch.randint(3, 61, (1, 24))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, 16:]
        cache = model(ids[:, :16], use_cache=True).past_key_values
        return (model(ids[:, 16:], past_key_values=cache, use_cache=True, **given).logits - whole).abs().max().item()


def defect() -> str | None:
    """Bamba without position_ids, which it then counts from 0; MiniMax with the right ones."""
    torch.manual_seed(0)
    bamba = BambaConfig(
        **SIZES, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
        mamba_chunk_size=8,
    )  # fmt: skip
    minimax = MiniMaxConfig(
        **SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    off = {
        "Bamba": off_by(BambaForCausalLM(bamba).eval()),
        "MiniMax": off_by(MiniMaxForCausalLM(minimax).eval(), position_ids=torch.arange(16, 24)[None]),
    }
    wrong = [f"{name} {far:.1e}" for name, far in off.items() if not far <= 1e-4]
    return f"off by: {', '.join(wrong)}" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
