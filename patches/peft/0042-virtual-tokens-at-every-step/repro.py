"""Does generate write what a prompt-tuned model's full forwards do? Exits 1 if not, 0 if it does."""

import sys
import warnings

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """Which kind of prompt learning writes other tokens from its cache."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, eos_token_id=None,
    )  # fmt: skip
    for kind in (PromptTuningConfig, PrefixTuningConfig):
        torch.manual_seed(0)
        ids = torch.randint(3, 61, (1, 10))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            prompt = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
            model = get_peft_model(LlamaForCausalLM(config), prompt).eval()
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
            )
            for _ in range(8):
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        if not torch.equal(written, ids):
            return f"{kind.__name__}: {written[0, 10:].tolist()} for {ids[0, 10:].tolist()}"
    return None


if __name__ == "__main__":
    sys.exit(defect())
