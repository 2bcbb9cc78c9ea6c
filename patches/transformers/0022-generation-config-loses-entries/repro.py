"""Is an entry that a user adds to a fresh model's generation_config loaded again? Exits 1 if not, 0 if it is."""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def defect() -> str | None:
    """The entry in the file, and as it is loaded."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(config)
        model.generation_config.question_tokens = 64
        model.save_pretrained(folder)
        saved = json.loads(Path(folder, "generation_config.json").read_text()).get("question_tokens")
        loaded = getattr(AutoModelForCausalLM.from_pretrained(folder).generation_config, "question_tokens", None)
    return f"{saved} in the file, {loaded} loaded" if loaded != 64 else None


if __name__ == "__main__":
    sys.exit(defect())
