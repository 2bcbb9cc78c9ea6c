"""Does `transformers serve --trust-remote-code` load the class that auto_map names? Exits 1 if not, 0 if it does."""

import json
import sys
import tempfile
from pathlib import Path

try:
    from transformers.cli.serving.model_manager import ModelManager
except ImportError as missing:
    print(f"needs transformers[serving]: {missing}")
    sys.exit(3)
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

CODE = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"


def defect() -> str | None:
    """The classes that AutoModelForCausalLM and the server load from the same folder."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        Path(folder, "modeling_own.py").write_text(CODE)
        entries = json.loads(Path(folder, "config.json").read_text())
        entries["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
        Path(folder, "config.json").write_text(json.dumps(entries))
        auto = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        served = ModelManager(device="cpu", trust_remote_code=True)._load_model(f"{folder}@main")
    names = type(auto).__name__, type(served).__name__
    return "AutoModelForCausalLM gives {}, the server {}".format(*names) if names[0] != names[1] else None


if __name__ == "__main__":
    sys.exit(defect())
