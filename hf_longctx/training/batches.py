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
    if path.suffix == ".pt":
        found = torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
    else:
        raise ValueError(f"{path}: expected {FORMS}.")
    if not isinstance(found, dict) or "input_ids" not in found:
        raise ValueError(f"{path} has no input_ids: expected {FORMS}.")
    return {name: _tensor(name, value) for name, value in found.items()}


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, list):
        try:
            value = torch.tensor(value)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{name}: expected numbers in rows of the same length ({error}). Pad them on the right, with an "
                f"attention_mask, or pack them into one row, with position_ids."
            ) from None
    per_token = isinstance(value, Tensor) and not name.startswith(("cu_seq_lens", "max_length", "num_items"))
    return value[None] if per_token and value.dim() == 1 else value
