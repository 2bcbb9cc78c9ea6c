"""A batch in a file, as a data loader would give it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMS = "a .json file or a .pt file of torch.save, with input_ids and whatever else the model's forward is given"


def read_batch(path: Path) -> dict[str, Any]:
    """Read a dict of tensors. A single row may be written without the brackets of the batch."""
    if path.suffix not in (".pt", ".json"):
        raise ValueError(f"{path}: expected {FORMS}.")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. Give {FORMS}.")
    try:
        found = torch.load(path, "cpu", weights_only=True) if path.suffix == ".pt" else json.loads(path.read_bytes())
    except Exception as error:  # torch.load's are many: those of pickle, zip and struct
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} cannot be read ({why}): expected {FORMS}.") from error
    if not isinstance(found, dict) or "input_ids" not in found:
        raise ValueError(f"{path} has no input_ids: expected {FORMS}.")
    batch = {name: _tensor(name, value) for name, value in found.items()}
    _check_ids(path, batch)
    return batch


def _check_ids(path: Path, batch: dict[str, Any]) -> None:
    """Token ids and labels are whole numbers in rows, as many of both."""
    ids = batch["input_ids"]
    for name in ("input_ids", "labels"):
        given = batch.get(name)
        if given is None and name == "labels":
            continue
        if not isinstance(given, Tensor):
            raise ValueError(f"{path}: {name} is {type(given).__name__} ({given!r:.40}), expected rows of token ids.")
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            kind = str(given.dtype).removeprefix("torch.")
            # torch takes an empty list for float32
            held = kind if given.numel() else "no token"
            raise ValueError(f"{path}: {name} holds {held}, expected whole numbers: the ids of the tokenizer.")
        if given.dim() != 2 or not given.numel():
            raise ValueError(
                f"{path}: {name} of the shape {tuple(given.shape)}, expected (rows, tokens), at least one of each."
            )
        if given.shape != ids.shape:
            raise ValueError(
                f"{path}: {name} of the shape {tuple(given.shape)}, expected {tuple(ids.shape)}, one for each token of "
                f"input_ids."
            )


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, list):
        try:
            value = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"{name}: expected numbers in rows of the same length ({error}). Pad them on the right, with an "
                f"attention_mask, or pack them into one row, with position_ids."
            ) from None
    per_token = isinstance(value, Tensor) and not name.startswith(("cu_seq_lens", "max_length", "num_items"))
    return value[None] if per_token and value.dim() == 1 else value
