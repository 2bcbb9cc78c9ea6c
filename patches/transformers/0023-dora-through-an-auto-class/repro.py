"""Does AutoModelForCausalLM load a DoRA adapter whole? Exits 1 if not, 0 if it does."""

import logging
import sys
import tempfile

try:
    from peft import LoraConfig, PeftModel, get_peft_model
except ImportError:
    print("needs peft")
    sys.exit(3)
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """How far the adapter is from itself, loaded by PeftModel and by the auto class."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16,
    )  # fmt: skip
    ids = torch.randint(3, 61, (1, 10))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as adapter, torch.no_grad():
        LlamaForCausalLM(config).save_pretrained(base)
        dora = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), dora).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
            elif "magnitude" in name:
                parameter.mul_(1.7)
        model.save_pretrained(adapter)
        right = model(ids).logits
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(ids).logits
        by_auto = AutoModelForCausalLM.from_pretrained(adapter).eval()(ids).logits
    assert (by_peft - right).abs().max() < 1e-4, "also wrong through PeftModel"
    off = (by_auto - right).abs().max()
    return None if off <= 1e-4 else f"{off:.1e} off through AutoModelForCausalLM, right through PeftModel"


if __name__ == "__main__":
    sys.exit(defect())
