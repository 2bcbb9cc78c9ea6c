"""The model with its new positions: all of its weights, or adapters with norms and embeddings; and its saved form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from hf_longctx.hub import load, save
from hf_longctx.hub.resolve import locate

from .positions import extended


def load_extended(config: dict[str, Any]) -> tuple[Any, Any]:
    """The model in float32 on the CPU, and its tokenizer.

    Raises:
        ValueError: The positions do not fit the model, or the tokenizer does not.
    """
    stock = AutoConfig.from_pretrained(locate(config["model"]).location)
    changed = extended(stock, config["positions"], config["length"])
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu", config=changed)
    check_tokenizer(tokenizer, model)
    return model, tokenizer


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """ValueError for tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: they are not of one model. "
            f"Save both into one folder, or resize the embeddings."
        )


def ending_with(model: nn.Module, ends: list[str]) -> list[str]:
    """The names of the modules that end with one of these, such as q_proj or mlp.up_proj, whole parts of a name only.

    Raises:
        ValueError: An end has no module with weights, with the last parts of the names that there are.
    """
    owners = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    found = {end: [name for name in owners if f".{name}".endswith(f".{end}")] for end in ends}
    if missing := [end for end, names in found.items() if not names]:
        there = sorted({name.rpartition(".")[2] for name in owners if not name.rpartition(".")[2].isdigit()})
        raise ValueError(
            f"train: {', '.join(missing)}: no module with weights has such a name. There are {', '.join(there)}."
        )
    return [name for name in owners if any(name in names for names in found.values())]


def train_only(model: nn.Module, ends: list[str]) -> None:
    """Weights of all other modules stay as they are."""
    chosen = ending_with(model, ends)
    model.requires_grad_(False)
    for name in chosen:
        model.get_submodule(name).requires_grad_(True)


def with_adapters(model: Any, rank: int, ends: list[str] | None = None) -> Any:
    """LoRA on every linear layer but the head; norms and embeddings are trained whole (LongLoRA's finding).

    With `ends`, only on linear layers of the modules whose names end so, and nothing is trained whole.
    """
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    names = {name: module for name, module in model.named_modules() if name}
    linear = [name for name, module in names.items() if isinstance(module, nn.Linear) and module is not head]
    whole = {name.split(".")[-1] for name in names if "norm" in name.split(".")[-1]}
    embeddings = next(name for name, module in names.items() if module is model.get_input_embeddings())
    saved: list[str] | None = [*sorted(whole), embeddings.split(".")[-1]]
    if ends is not None:
        chosen, saved = ending_with(model, ends), None
        linear = [name for name in linear if any(f"{name}.".startswith(f"{one}.") for one in chosen)]
        if not linear:
            raise ValueError(f"train: {ends}, lora: {rank}: adapters go on linear layers, and these have none.")
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        modules_to_save=saved,
        ensure_weight_tying=tied and saved is not None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def save_native(model: Any, tokenizer: Any, folder: Path, dtype: str) -> Path:
    """A stock checkpoint in `folder`, adapters merged."""
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    tokenizer.model_max_length = merged.config.max_position_embeddings
    return save(merged.to("cpu", getattr(torch, dtype)), tokenizer, folder, overwrite=True)
