"""Can hybrid layers take DynamicCache() without a config, or say that they cannot? Exits 1 if not, 0 if so."""

import sys

import torch
from transformers import DynamicCache, FalconH1Config, FalconH1ForCausalLM


def defect() -> str | None:
    """What a forward with a new DynamicCache() raises."""
    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, mamba_d_ssm=64, mamba_n_heads=8,
        mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=8,
    )  # fmt: skip
    model, ids = FalconH1ForCausalLM(config).eval(), torch.randint(3, 61, (1, 8))
    with torch.no_grad():
        model(ids, past_key_values=DynamicCache(config=config), use_cache=True)
        try:
            model(ids, past_key_values=DynamicCache(), use_cache=True)
        except IndexError as error:
            return f"IndexError: {error}"
        except ValueError:
            return None  # it says what is wrong
    return None


if __name__ == "__main__":
    sys.exit(defect())
