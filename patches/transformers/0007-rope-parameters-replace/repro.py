"""Does from_pretrained(rope_parameters=...) keep partial_rotary_factor? Exits 1 if not, 0 if it does."""

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM


def defect() -> str | None:
    """The number of frequencies that the model has, loaded with other rope_parameters, and saved and loaded again."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, rotary_pct=0.25
    )
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as again:
        stock = GPTNeoXForCausalLM(config)
        stock.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, rope_parameters=linear)
        loaded.save_pretrained(again)
        reloaded = AutoModelForCausalLM.from_pretrained(again)
    numbers = [model.gpt_neox.rotary_emb.inv_freq.numel() for model in (stock, loaded, reloaded)]
    return (
        "frequencies: {} in the model, {} loaded, {} saved and loaded again".format(*numbers)
        if len({*numbers}) > 1
        else None
    )


if __name__ == "__main__":
    sys.exit(defect())
