"""Does a callable `custom_generate` get the streamer that `generate` was given? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class Streamer:
    """The least that `generate` takes for a streamer."""

    def put(self, value):
        """Nothing to show."""

    def end(self):
        """Nothing to end."""


def defect() -> str | None:
    """What a decoding method sees of the streamer."""
    seen = []

    def mine(model, input_ids, streamer=None, **kwargs):
        seen.append(streamer)
        return input_ids

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generate(torch.tensor([[1, 2]]), custom_generate=mine, streamer=Streamer(), max_new_tokens=1)
    return None if isinstance(seen[0], Streamer) else f"streamer is {seen[0]}"


if __name__ == "__main__":
    sys.exit(defect())
