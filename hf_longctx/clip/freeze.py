"""Keep the first rows of the text positions as they are while the others train (Long-CLIP, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..settings import is_whole
from .stretch import MARK, find_text_embeddings, text_configs
from .table import KEEP


class FrozenRows:
    """The first `keep` rows of a model's text positions stay bit for bit the same, whatever the optimizer does.

    Their gradient is zero, so no norm includes them; and since weight decay and old momentum change a row without any
    gradient, they are restored after every step. Works under accelerate, DDP and with LoRA on the rest. FSDP's sharded
    table is refused. A context manager; `remove` ends it. Long-CLIP's own code keeps a second table instead.

    Args:
        model: A CLIP or SigLIP model of transformers, also wrapped in DDP or PEFT.
        optimizer: The training's, of torch or accelerate. Freeze after `accelerator.prepare`.
        keep: Rows from the first; by default those that stretching kept, or the paper's 20.

    Raises:
        ValueError: A `keep` beyond the table, an optimizer that does not train the table, or a sharded table.
    """

    def __init__(self, model: nn.Module, optimizer: Any, keep: int | None = None) -> None:
        table: nn.Parameter = find_text_embeddings(model)[1].position_embedding.weight
        rows = table.shape[0]
        if keep is None:
            marks = (getattr(config, MARK, None) for config in text_configs(model, rows))
            keep = next((mark["keep"] for mark in marks if mark), KEEP)
        if not is_whole(keep, 0) or keep > rows:
            raise ValueError(f"keep={keep!r}: expected 0 to {rows}, as the table has {rows} rows.")
        if type(table.data) not in (Tensor, nn.Parameter) or table.numel() == 0:
            raise ValueError("the table of text positions is sharded (FSDP or DeepSpeed). Train it under DDP.")
        if not table.requires_grad:
            raise ValueError("the table of text positions does not train. Set requires_grad of it first.")
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has torch's inside
        if not any(one is table for group in inner.param_groups for one in group["params"]):
            raise ValueError(
                "the optimizer does not train this model's table of text positions. Stretch first, then make the "
                "optimizer, since stretching makes a new table."
            )
        self.keep = keep
        self._table = table
        self._rows = table.detach()[:keep].clone()
        self._handles = [table.register_hook(self._without_gradient), inner.register_step_post_hook(self._put_back)]

    def _without_gradient(self, grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[: self.keep] = 0
        return grad

    @torch.no_grad()
    def _put_back(self, *_: Any) -> None:
        self._rows = self._rows.to(self._table.device)
        self._table[: self.keep] = self._rows

    def remove(self) -> None:
        """Let all rows train again."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> FrozenRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
