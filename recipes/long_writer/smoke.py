"""What `chain.py --smoke` does: a tiny model with a tokenizer of its own goes through the whole chain on a CPU."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longctx.storage.files import write_json_lines
from recipes.config import merged
from recipes.expected import hold
from recipes.extend_context.smoke import write_documents, write_model
from recipes.long_writer.settings import DEFAULT, HERE, WHOLE, checked, read_config

CONTEXT = 640
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = ("The river is long and slow.", "A stone lies under the water.", "Birds fly over the old bridge.")


def prepare(folder: Path) -> dict[str, Any]:
    """A model, files of writing, and the recipe's config for them."""
    write_model(folder / "model", write_documents(folder / "documents"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", max_position_embeddings=2 * CONTEXT)
    model.save_pretrained(folder / "model")
    for name, seed in (("writing", 0), ("held_back", 1)):
        write_json_lines(folder / f"{name}.jsonl", writing(random.Random(seed), 12))
    changes: dict[str, Any] = {
        "model": str(folder / "model"),
        "out": str(folder / "out"),
        "chats": [str(folder / "writing.jsonl")],
        "context": CONTEXT,
        "save_dtype": "float32",
        "tasks": {"names": ["numbered", "ledger"], "tokens": [60, 90]},
    }
    few = {"save_steps": 3, "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False}
    changes["sft"] = {"problems": 24, "packs": 1, "packs_per_step": 2, "steps": 8}
    changes["sft"]["training"] = few | {"learning_rate": 5e-3, "warmup_steps": 2}
    changes["dpo"] = {"problems": 6, "prompts": 3, "samples": 2, "longest": 40, "pairs_per_step": 4, "pairs": 2}
    changes["dpo"] |= {"steps": 2, "training": few}
    changes["grpo"] = {"problems": 4, "tokens": [60, 60], "prompts_per_step": 2, "answers": 4, "steps": 2}
    changes["grpo"]["training"] = few | {"num_generations": 4, "max_completion_length": 96}
    changes["score"] = {"tasks": ["numbered"], "tokens": [60], "problems": 2, "prompts": 2, "longest": 40}
    changes["score"] |= {
        "writing": str(folder / "held_back.jsonl"),
        "tokens_at_once": 4 * CONTEXT,
        "tokens_per_word": 2.0,
    }
    return checked(merged(read_config(DEFAULT), changes, WHOLE))


def writing(rng: random.Random, rows: int) -> list[dict[str, Any]]:
    """Chats that ask for a number of words."""
    found = []
    for _ in range(rows):
        words = 10 * rng.randint(1, 4)
        text = " ".join(rng.choice(SENTENCES) for _ in range(round(words / 6)))
        asked = {"role": "user", "content": f"Write about a river in {words} words."}
        found.append({"messages": [asked, {"role": "assistant", "content": text}], "words": words})
    return found


def check(found: dict[str, Any]) -> None:
    """Hold figures against expected.json; SystemExit where they are off."""
    print(json.dumps(found))
    hold(found, HERE / "expected.json")
    print("as expected")


def figures(report: dict[str, Any], out: Path) -> dict[str, float]:
    """What expected.json has of a report."""
    sft, dpo, grpo = (report["stages"][name] for name in ("sft", "dpo", "grpo"))
    cards = [(out / name / "model/README.md").read_text(encoding="utf-8") for name in report["stages"]]
    return {
        "fine-tuning: last loss over first": sft["logs"][-1]["loss"] / sft["logs"][0]["loss"],
        "fine-tuning: steps": sft["steps"],
        "preferences: first loss": dpo["logs"][0]["loss"],
        "preferences: pairs": dpo["data"]["kept"],
        "reinforcement: groups": grpo["groups"]["groups"],
        "lines": len(report["lines"]),
        "cells not measured": sum(len(one["not measured"]) for one in report["lines"].values()),
        "cards": sum("right before the first error" in card for card in cards),
    }
