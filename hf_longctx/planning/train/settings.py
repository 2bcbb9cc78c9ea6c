"""What a Trainer's arguments and its model say of a run: precision, optimizer, checkpointing, trained parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def settings_of(model: nn.Module, args: Any) -> dict[str, Any]:
    """Fields of `TrainingRun`, from a model and `TrainingArguments`."""
    checkpointing = _either(args, "activation_checkpointing", "gradient_checkpointing")
    kwargs = _either(args, "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs") or {}
    found: dict[str, Any] = {
        "precision": _precision(model, args),
        "optimizer": optimizer_of(str(getattr(args.optim, "value", args.optim))),
        # by an argument, or on the model itself
        "checkpointing": bool(checkpointing)
        or any(getattr(m, "gradient_checkpointing", False) for m in model.modules()),
        "offload": bool(checkpointing) and bool(kwargs.get("offload", False)),
    }
    counts = [p.numel() for p in model.parameters() if p.requires_grad]
    if len(counts) < len(list(model.parameters())):
        found["trained"] = max(1, sum(counts))
    return found


def optimizer_of(name: str) -> str:
    """The key of `OPTIMIZERS` for a name of transformers; AdamW for one that is not known."""
    if "8bit" in name:
        return "adamw_8bit"
    if name == "sgd" or "adafactor" in name:
        return "sgd"
    return "adamw_foreach" if name == "adamw_torch" else "adamw"


def _either(args: Any, *names: str) -> Any:
    return next((value for value in (getattr(args, name, None) for name in names) if value), None)


def _precision(model: nn.Module, args: Any) -> str:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if trained and torch.float32 not in dtypes:
        return "bf16"
    if torch.float32 in dtypes and len(dtypes) > 1 and torch.float32 in trained and _mostly_half(model):
        return "bf16"  # adapters are fp32
    return "mixed" if getattr(args, "bf16", False) or getattr(args, "fp16", False) else "fp32"


def _mostly_half(model: nn.Module) -> bool:
    sizes = [(p.element_size() == 2, p.numel()) for p in model.parameters()]
    return sum(n for half, n in sizes if half) > sum(n for half, n in sizes if not half)
