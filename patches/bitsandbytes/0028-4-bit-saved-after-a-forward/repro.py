"""Are 4-bit weights on a CPU with AVX512-BF16 saved right after a forward? Exits 1 if not, 0 if they are."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

CPU = Path("/proc/cpuinfo")
if not CPU.exists() or "avx512_bf16" not in CPU.read_text():
    print("needs a CPU with avx512_bf16")
    sys.exit(3)


def defect() -> str | None:
    """How far a model is from itself, saved before and after a forward without gradients."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16,
    )  # fmt: skip
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    ids = torch.randint(3, 61, (1, 10))
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as saved, torch.no_grad():
        LlamaForCausalLM(config).save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bit, dtype=torch.bfloat16).eval()
        model.save_pretrained(f"{saved}/before")
        right = model(ids).logits
        model.save_pretrained(f"{saved}/after")
        before = AutoModelForCausalLM.from_pretrained(f"{saved}/before").eval()(ids).logits
        assert (before - right).abs().max() < 1e-2, "also wrong before a forward"
        try:
            off = (AutoModelForCausalLM.from_pretrained(f"{saved}/after").eval()(ids).logits - right).abs().max()
        except RuntimeError as error:
            return f"saved after a forward: {str(error)[:100]}"
    return None if off <= 1e-2 else f"{off:.1e} off, saved after a forward"


if __name__ == "__main__":
    sys.exit(defect())
