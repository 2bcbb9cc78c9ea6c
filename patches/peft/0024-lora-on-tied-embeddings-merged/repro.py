"""Is a merged LoRA on a tied embedding what the adapter was? Exits 1 if not, 0 if it is."""

import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """How far the merged model is from the adapted one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.16, tie_word_embeddings=True,
    )  # fmt: skip
    lora = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    ids = torch.randint(3, 61, (1, 10))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = get_peft_model(LlamaForCausalLM(config), lora).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
        adapted = model(ids).logits
        off = (model.merge_and_unload().eval()(ids).logits - adapted).abs().max()
    return None if off <= 1e-3 else f"{off:.1e} off once merged"


if __name__ == "__main__":
    sys.exit(defect())
