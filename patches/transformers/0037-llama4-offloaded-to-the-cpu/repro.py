"""Does Llama 4 run when it is offloaded to the memory of the CPU? Exits 1 if not, 0 if so."""

import sys

import torch
from accelerate import cpu_offload
from transformers import Llama4ForCausalLM, Llama4TextConfig


def defect() -> str | None:
    """What a forward of the offloaded model raises."""
    config = Llama4TextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = cpu_offload(Llama4ForCausalLM(config).eval(), execution_device=torch.device("cpu"))
    try:
        with torch.no_grad():
            model(torch.randint(3, 61, (1, 8)))
    except NotImplementedError as error:
        return f"NotImplementedError: {error}"
    return None


if __name__ == "__main__":
    sys.exit(defect())
