"""Can a cache with the states of a recurrence repeat its rows? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import DynamicCache, Zamba2Config, Zamba2ForCausalLM


def defect() -> str | None:
    """What repeating rows raises, or which states were left out."""
    config = Zamba2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, layers_block_type=["mamba", "hybrid"], hybrid_layer_ids=[1], num_mem_blocks=1,
        mamba_d_state=8, n_mamba_heads=4, mamba_ngroups=1, chunk_size=8, use_mem_rope=True, pad_token_id=0,
    )  # fmt: skip
    model, cache = Zamba2ForCausalLM(config).eval(), DynamicCache(config=config)
    with torch.no_grad():
        model(torch.randint(3, 61, (1, 8)), past_key_values=cache, use_cache=True)
    try:
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
    except AttributeError as error:
        return f"AttributeError: {error}"
    rows = {len(states[0]) for layer in cache.layers for states in (layer.conv_states, layer.recurrent_states)}
    return None if rows == {3} else f"rows of states after repeating and selecting 3: {sorted(rows)}"


if __name__ == "__main__":
    sys.exit(defect())
