"""The YAML at the head of a card, by which the Hub finds and shows a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tiers import is_adapter, read_json
from .facts import CardFacts

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEXT_GENERATION = "text-generation"


def pipeline_tag(folder: Path) -> str:
    """The Hub's word for what a checkpoint is for, by its architecture's place in transformers' own table."""
    from transformers.modelcard import TASK_MAPPING

    config = read_json(folder, "config.json") or {}
    named = set(config.get("architectures") or [])
    # the last that has it: a model that reads images as well also stands among the language models
    tags = [tag for tag, models in TASK_MAPPING.items() if named & set(models.values())]
    return tags[-1] if tags else TEXT_GENERATION


def header(
    folder: Path, name: str, facts: CardFacts, methods: Sequence[str], results: Sequence[EvalResult], *, ours: bool
) -> str:
    """The block between the lines `---`.

    Args:
        folder: Of the model.
        name: The model's, in `model-index`.
        facts: Where it comes from.
        methods: Names of methods and procedures, which become tags.
        results: What was measured.
        ours: The model was made with hf_longctx; else it is not tagged so.
    """
    from huggingface_hub import ModelCardData

    adapter = is_adapter(folder)
    about: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": pipeline_tag(folder),
    }
    about |= {key: value for key, value in vars(facts).items() if value and key not in ("base_model", "language")}
    if facts.language:
        about["language"] = facts.language[0] if len(facts.language) == 1 else list(facts.language)
    if facts.base_model:
        about |= {"base_model": facts.base_model, "base_model_relation": _relation(folder, adapter)}
    if results:
        about |= {"model_name": name, "eval_results": list(results)}
    tags = ["hf_longctx", "long-context", *methods] if ours else ["long-context"]
    return f"---\n{ModelCardData(tags=tags, **about).to_yaml()}\n---"


def _relation(folder: Path, adapter: bool) -> str:
    """One of the Hub's four words; "finetune" is what it takes a model for whose card says nothing."""
    quantized = "quantization_config" in (read_json(folder, "config.json") or {})
    return "adapter" if adapter else "quantized" if quantized else "finetune"
