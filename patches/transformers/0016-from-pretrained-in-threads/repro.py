"""Can two threads load models of two dtypes? Exits 1 if the process is another one afterwards, 0 if they can."""

import sys
import tempfile
import threading

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PATIENCE = 3.0  # seconds for what a repaired from_pretrained never lets happen


def loaders(inside: threading.Event, second_inside: threading.Event, first_done: threading.Event):
    """Two classes: one that waits for the other's constructor, and one that waits until the first is loaded."""

    class First(LlamaForCausalLM):
        def __init__(self, config):
            inside.set()
            second_inside.wait(PATIENCE)
            super().__init__(config)

    class Second(LlamaForCausalLM):
        def __init__(self, config):
            second_inside.set()
            first_done.wait(PATIENCE)
            super().__init__(config)

    return First, Second


def defect() -> str | None:
    """What is left of loading a bfloat16 and a float32 model, the second begun inside the first and ended after it."""
    inside, second_inside, first_done = threading.Event(), threading.Event(), threading.Event()
    First, Second = loaders(inside, second_inside, first_done)
    before = torch.get_default_dtype()
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)

        def load_first() -> None:
            First.from_pretrained(folder, dtype=torch.bfloat16)
            first_done.set()

        thread = threading.Thread(target=load_first)
        thread.start()
        inside.wait()
        Second.from_pretrained(folder, dtype=torch.float32)
        thread.join()
    after = torch.get_default_dtype()
    torch.set_default_dtype(before)
    later = LlamaForCausalLM(LlamaConfig(**config.to_dict() | {"tie_word_embeddings": True}))
    wrong = [f"the default dtype is {after}, before {before}"] if after != before else []
    if later.lm_head.weight is not later.model.embed_tokens.weight:
        wrong.append("a model that is built now is not tied")
    return "; ".join(wrong) or None


if __name__ == "__main__":
    sys.exit(defect())
