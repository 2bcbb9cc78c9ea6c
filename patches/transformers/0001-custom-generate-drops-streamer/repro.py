"""Does a callable `custom_generate` get the streamer that `generate` was given? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

seen = []


def mine(model, input_ids, streamer=None, **kwargs):
    """A decoding method that notes whether it has a streamer."""
    seen.append(streamer)
    return input_ids


class Streamer:
    """The least that `generate` takes for a streamer."""

    def put(self, value):
        """Nothing to show."""

    def end(self):
        """Nothing to end."""


config = LlamaConfig(
    vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)
model = LlamaForCausalLM(config).eval()
model.generate(torch.tensor([[1, 2]]), custom_generate=mine, streamer=Streamer(), max_new_tokens=1)
sys.exit(0 if isinstance(seen[0], Streamer) else 1)
