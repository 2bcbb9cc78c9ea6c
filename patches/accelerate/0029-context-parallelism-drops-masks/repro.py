"""Does accelerate's hook for context parallelism keep packed documents apart? Exits 1 if not, 0 if it does."""

import sys

import torch
from accelerate.big_modeling import _attach_context_parallel_hooks
from transformers import LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """How far the second document of a pack is from the same document alone, with the hook and without."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    first, second = torch.randint(3, 61, (1, 10)), torch.randint(3, 61, (1, 12))
    given = {"position_ids": torch.cat([torch.arange(10), torch.arange(12)])[None], "use_cache": False}
    packed = torch.cat([first, second], 1)
    with torch.no_grad():
        alone = model(second, use_cache=False).logits
        assert (model(packed, **given).logits[:, 10:] - alone).abs().max() < 1e-4, "also wrong without the hook"
        _attach_context_parallel_hooks(model)
        off = (model(packed, **given).logits[:, 10:] - alone).abs().max()
    return None if off <= 1e-4 else f"{off:.1e} off with the hook"


if __name__ == "__main__":
    sys.exit(defect())
