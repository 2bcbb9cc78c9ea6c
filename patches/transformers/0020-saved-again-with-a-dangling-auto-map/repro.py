"""Does a folder that is loaded without its code, and saved, name code that it lacks? Exits 1 if it does, 0 if not."""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

CODE = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"


def defect() -> str | None:
    """What auto_map names in the second folder, and is not there."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as again:
        LlamaForCausalLM(config).save_pretrained(folder)
        Path(folder, "modeling_own.py").write_text(CODE)
        entries = json.loads(Path(folder, "config.json").read_text())
        entries["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
        Path(folder, "config.json").write_text(json.dumps(entries))
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(again)
        named = json.loads(Path(again, "config.json").read_text()).get("auto_map") or {}
        wrong = bool(named) and not Path(again, "modeling_own.py").exists()
    return f"config.json names {named}, and there is no such file" if wrong else None


if __name__ == "__main__":
    sys.exit(defect())
