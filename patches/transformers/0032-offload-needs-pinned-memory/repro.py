"""Can checkpointed activations be offloaded on a machine without an accelerator? Exits 1 if not, 0 if they can."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if torch.accelerator.is_available():
    print("shows on machines without an accelerator only")
    sys.exit(3)


def defect() -> str | None:
    """What a training step raises."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model, ids = LlamaForCausalLM(config).train(), torch.randint(3, 61, (1, 8))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False}, offload=True)
    except TypeError:
        print("this version has no offload=")
        sys.exit(3)
    try:
        model(ids, labels=ids, use_cache=False).loss.backward()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


if __name__ == "__main__":
    sys.exit(defect())
