"""What `train.py --smoke` does: a tiny model with a tokenizer of its own, on a few pages of Python's documentation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.expected import hold

from .settings import DEFAULT as CONFIG
from .settings import HERE, checked, read_config

NEAR, FAR = 128, 512


def main() -> None:
    """Train, measure, compare; SystemExit where something is off."""
    from .train import run

    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder))
        check(run(config), Path(config["out"]))


def prepare(folder: Path) -> dict[str, Any]:
    """A model, documents and the recipe's config for them."""
    texts = write_documents(folder / "documents")
    write_model(folder / "model", texts)
    config = read_config(CONFIG) | {"model": str(folder / "model"), "documents": str(folder / "documents")}
    config |= {"code": False, "held_back": ["novel", "manual"], "overlap": 0.5, "length": FAR, "short": [64, NEAR]}
    config |= {"positions": {"type": "base", "theta": 40_000.0}, "out": str(folder / "out")}
    config |= {"retrieval": {"lengths": [256, FAR], "facts": 2, "weight": 4}, "memory": {"tile": 128}}
    config |= {"batch_tokens": FAR, "tokens_per_step": 2 * FAR, "tokens": 12 * 2 * FAR, "save_dtype": "float32"}
    more = {"learning_rate": 5e-3, "warmup_steps": 2, "save_steps": 4, "logging_steps": 1, "disable_tqdm": True}
    config["training"] = config["training"] | more
    sizes = {"targets": 32, "windows": 4, "lengths": [64, NEAR, FAR], "retrieval": [FAR], "depths": 2, "trials": 2}
    config["evaluation"] = config["evaluation"] | sizes | {"chats": 4, "batch_tokens": 2 * FAR}
    return checked(config)


def write_documents(folder: Path) -> list[str]:
    """Topics of Python's reference, several a document."""
    folder.mkdir(parents=True)
    names = sorted(topics)
    parts = {"manual": names[:9], "novel": names[9:18], "long": names[18:50], "other": names[50:]}
    for name, own in parts.items():
        text = "\n\n".join(topics[topic].strip() for topic in own)[:60_000]
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]


def write_model(folder: Path, texts: list[str]) -> None:
    """A Llama of random weights that reads `NEAR` tokens, and a byte-level tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 0}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=NEAR, rope_parameters=rope, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)


def check(report: dict[str, Any], out: Path) -> None:
    """Hold what came out against expected.json; SystemExit where it is off."""
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(out / "model")
    found = {
        "last loss over first": report["losses"][-1] / report["losses"][0],
        "perplexity, 512 over stock at 128": report["ratios"][f"{FAR} over stock at {NEAR}"]["mean"],
        "steps": report["steps"],
        "rope_theta": saved.rope_parameters["rope_theta"],
        "max_position_embeddings": saved.max_position_embeddings,
        "measures left out": len(report["after"]["not measured"]),
    }
    print(json.dumps(found))
    hold(found, HERE / "expected.json")
    print("as expected")
