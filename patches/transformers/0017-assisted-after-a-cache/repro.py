"""Does prompt lookup that continues from a filled cache write greedy's tokens? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """In how many of six models the tokens differ; without a cache none do."""
    off = 0
    for seed in range(6):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=0, initializer_range=0.16,
        )  # fmt: skip
        model, read = LlamaForCausalLM(config).eval(), torch.randint(3, 61, (1, 20))
        ids = torch.cat([read, torch.randint(3, 61, (1, 6)), read[:, :8]], 1)

        def write(filled: bool, model=model, read=read, ids=ids, **kwargs) -> torch.Tensor:
            cache = DynamicCache(config=model.config)
            if filled:
                model(read, past_key_values=cache, use_cache=True)
            return model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False, **kwargs)

        with torch.no_grad():
            greedy = write(True)
            assert torch.equal(write(False, prompt_lookup_num_tokens=3), greedy), "also wrong without a cache"
            try:
                off += not torch.equal(write(True, prompt_lookup_num_tokens=3), greedy)
            except ValueError:
                return None  # refused, which is no wrong answer
    return f"other tokens than greedy in {off} of 6 models" if off else None


if __name__ == "__main__":
    sys.exit(defect())
