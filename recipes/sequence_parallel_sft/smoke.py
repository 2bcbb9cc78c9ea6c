"""What `train.py --smoke` does: a tiny model on made-up documents, and the same steps by one stock process."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from recipes import shared_batches
from recipes.cards import one_card
from recipes.expected import hold
from recipes.shared_batches import smoke

HERE = Path(__file__).parent
EXACT = 1e-5  # fp32, relative
WORDS = 90


def main() -> None:
    """The recipe on all processes, then one of them compares; SystemExit where something is off."""
    from .train import run

    smoke(prepare, run, lambda report, folder: check(report, stock(folder)))


def prepare(folder: Path) -> None:
    """A model, documents of very different lengths, and the recipe's config for them."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": WORDS + 2, "hidden_size": 72, "intermediate_size": 96, "head_dim": 8}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 2, "pad_token_id": WORDS}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=2048))
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(6)  # attention that is far from uniform
    model.save_pretrained(folder / "model")
    vocabulary = {**{f"w{i}": i for i in range(WORDS)}, "<pad>": WORDS, "<eos>": WORDS + 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "model"
    )
    chance = random.Random(0)
    with open(folder / "documents.jsonl", "w", encoding="utf-8") as file:
        for length in (700, 333, 256, 199, 150, 101, 77, 50, 31, 20, 12, 7, 3, 1, 1):
            text = " ".join(f"w{min(chance.randrange(WORDS), chance.randrange(WORDS))}" for _ in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    config: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    config |= {"model": str(folder / "model"), "documents": str(folder / "documents.jsonl"), "out": str(folder / "out")}
    config |= {"pack": 512}
    config["training"] |= {"learning_rate": 3e-3, "max_steps": 4, "bf16": False, "disable_tqdm": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def stock(folder: Path) -> dict[str, Any]:
    """What one process with transformers' own Trainer finds, on the same packs in the same order."""
    return shared_batches.stock("recipes.sequence_parallel_sft.smoke", folder)


def train_stock(folder: Path) -> None:
    """The recipe without hf_longctx."""
    from transformers import AutoTokenizer

    from .packs import PackCollator, packed, read_documents

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    packs = packed([tokenizer(text).input_ids for text in read_documents(config["documents"])], config["pack"])
    one = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "remove_unused_columns": False}
    more = {"use_cpu": not torch.cuda.is_available(), "report_to": [], "save_strategy": "no", "eval_on_start": True}
    trainer = Trainer(
        model=LlamaForCausalLM.from_pretrained(config["model"], dtype=torch.float32),
        args=one_card(TrainingArguments(output_dir=str(folder / "stock"), **(config["training"] | one | more))),
        train_dataset=packs[:-1],
        eval_dataset=packs[-1:],
        data_collator=PackCollator(),
    )
    trainer.model.config.use_cache = False  # with a cache, documents would see each other
    trainer.train()
    logs = trainer.state.log_history
    found = {
        "losses": [log["loss"] for log in logs if "grad_norm" in log],
        "before": next(log["eval_loss"] for log in logs if "eval_loss" in log),
        "after": trainer.evaluate()["eval_loss"],
    }
    (folder / "stock.json").write_text(json.dumps(found), encoding="utf-8")


def check(report: dict[str, Any], right: dict[str, Any]) -> None:
    """Hold the report against the stock process, and what is trained against expected.json."""
    pairs = {f"loss of step {i}": pair for i, pair in enumerate(zip(report["losses"], right["losses"], strict=True), 1)}
    pairs |= {f"eval loss {name}": (report[name], right[name]) for name in ("before", "after")}
    found = {
        "relative difference to one stock process": max(abs(a - b) / b for a, b in pairs.values()),
        "steps": len(report["losses"]),
        "packs": report["packs"],
        "eval loss after over before": report["after"] / report["before"],
    }
    print(json.dumps(report | found, indent=2))
    hold(found, HERE / "expected.json")
    print("as expected")


if __name__ == "__main__":
    train_stock(Path(sys.argv[1]))
