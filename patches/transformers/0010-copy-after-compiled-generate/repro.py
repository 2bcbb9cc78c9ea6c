"""Does a deepcopy made after a compiled `generate` use its own weights? Exits 1 if not, 0 if it does."""

import copy
import sys

import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """What a copy with other weights writes, compiled and not."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    first, other, ids = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval(), torch.randint(3, 61, (1, 6))
    compile_config = CompileConfig(backend="eager", fullgraph=False)
    compile_config._compile_all_devices = True  # also on a CPU
    compiled = {"cache_implementation": "static", "compile_config": compile_config}
    greedy = {"max_new_tokens": 4, "do_sample": False}
    first.generate(ids, **greedy, **compiled)
    twin = copy.deepcopy(first)
    twin.load_state_dict(other.state_dict())
    wrote = twin.generate(ids, **greedy, **compiled)[0, 6:].tolist()
    right = other.generate(ids, **greedy)[0, 6:].tolist()
    return f"the copy wrote {wrote}, its weights write {right}" if wrote != right else None


if __name__ == "__main__":
    sys.exit(defect())
