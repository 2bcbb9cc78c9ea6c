"""Does MPT read more tokens than max_seq_len, which ALiBi does not bound? Exits 1 if not, 0 if it does."""

import sys

import torch
from transformers import MptConfig, MptForCausalLM


def defect() -> str | None:
    """How far a model is from the same one with a longer table, on a text past the shorter one."""
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 61, "initializer_range": 0.16}
    torch.manual_seed(0)
    short = MptForCausalLM(MptConfig(**sizes, max_seq_len=16)).eval()
    long = MptForCausalLM(MptConfig(**sizes, max_seq_len=64)).eval()
    long.load_state_dict(short.state_dict())
    ids = torch.randint(3, 61, (1, 40))
    with torch.no_grad():
        try:
            off = (short(ids).logits - long(ids).logits).abs().max()
        except RuntimeError as error:
            return f"40 tokens at max_seq_len=16: {error}"
    return None if off <= 1e-4 else f"{off:.1e} off past max_seq_len"


if __name__ == "__main__":
    sys.exit(defect())
