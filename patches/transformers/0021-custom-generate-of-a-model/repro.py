"""Does a model with custom_generate/ take generate(ids), and save the folder? Exits 1 if not, 0 if it does."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

CODE = "def generate(model, input_ids=None, **kwargs):\n    return input_ids\n"


def defect() -> str | None:
    """What calling it by position raises, and whether saving keeps it."""
    wrong, ids = [], torch.tensor([[3, 4]])
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as again:
        LlamaForCausalLM(config).save_pretrained(folder)
        Path(folder, "custom_generate").mkdir()
        Path(folder, "custom_generate", "generate.py").write_text(CODE)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert torch.equal(model.generate(input_ids=ids), ids)
        try:
            model.generate(ids)
        except TypeError as error:
            wrong.append(f"model.generate(ids): {error}")
        model.save_pretrained(again)
        if not Path(again, "custom_generate", "generate.py").exists():
            wrong.append("save_pretrained leaves custom_generate/ out")
    return "; ".join(wrong) or None


if __name__ == "__main__":
    sys.exit(defect())
