"""What `train.py --smoke` does: a tiny model on short pairs, and the same steps by one process with TRL alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_longctx.evaluation.tasks.long_output import write_rows
from recipes.cards import one_card
from recipes.expected import hold
from recipes.long_dpo.compare import difference
from recipes.long_dpo.pairs import made, read_pairs
from recipes.shared_batches import smoke, stock

HERE = Path(__file__).parent
TASKS = ("ledger", "order", "numbered", "route")
SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def main() -> None:
    """The recipe on all processes, then one of them compares; SystemExit where something is off."""
    from .train import run

    smoke(prepare, run, lambda report, folder: check(report, stock("recipes.long_dpo.smoke", folder)))


def prepare(folder: Path) -> None:
    """A model, pairs with answers of different lengths, and the recipe's config for them."""
    rows = [row for tokens in (60, 90) for row in made(TASKS, tokens, 5)]
    write_rows(folder / "pairs.jsonl", rows)
    words = tokenizer([message["content"] for row in rows for side in row.values() if isinstance(side, list)
                       for message in side])  # fmt: skip
    words.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(words), "hidden_size": 72, "intermediate_size": 96, "head_dim": 8}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 2}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids, max_position_embeddings=2048))
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(6)  # attention that is far from uniform
    model.save_pretrained(folder / "model")
    config: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    config |= {"model": str(folder / "model"), "pairs": str(folder / "pairs.jsonl"), "out": str(folder / "out")}
    config |= {"longest": 2048, "held_out": 2}
    # the first step's loss is log 2 on any number of processes: the later ones tell them apart
    steps = {"learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 4, "gradient_accumulation_steps": 2}
    config["training"] |= {**steps, "bf16": False, "disable_tqdm": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the texts, and a chat template."""
    words = Tokenizer(models.WordLevel(unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=10_000, special_tokens=list(SPECIAL)))
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    made.chat_template = TEMPLATE
    return made


def train_stock(folder: Path) -> None:
    """The recipe without hf_longctx: TRL's trainer in one process, on the same pairs in the same order."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from .train import measured

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    pairs, held = read_pairs(config["pairs"]), config["held_out"]
    one = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "max_length": None}
    more = {"use_cpu": not torch.cuda.is_available(), "report_to": [], "save_strategy": "no", "eval_on_start": True}
    trainer = DPOTrainer(
        model=LlamaForCausalLM.from_pretrained(config["model"], dtype=torch.float32),
        ref_model=LlamaForCausalLM.from_pretrained(config["model"], dtype=torch.float32),
        args=one_card(DPOConfig(output_dir=str(folder / "stock"), **(config["training"] | one | more))),
        train_dataset=Dataset.from_list(pairs[:-held]),
        eval_dataset=Dataset.from_list(pairs[-held:]),
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
    )
    trainer.train()
    found = {"processes": 1, "pairs": len(pairs) - held, "left out": 0, **measured(trainer)}
    (folder / "stock.json").write_text(json.dumps(found), encoding="utf-8")


def check(report: dict[str, Any], right: dict[str, Any]) -> None:
    """Hold the report against the stock process, and what is trained against expected.json."""
    found = {
        "relative difference to one stock process": difference(report, right),
        "steps": len(report["steps"]),
        "pairs": report["pairs"],
        "loss of the last step": report["steps"][-1]["loss"],
        "held-out margin after": report["after"]["rewards/margins"],
    }
    print(json.dumps(report | found, indent=2))
    hold(found, HERE / "expected.json")
    print("as expected")


if __name__ == "__main__":
    train_stock(Path(sys.argv[1]))
