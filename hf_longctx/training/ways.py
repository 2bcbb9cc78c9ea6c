"""Ways in which a packed batch is run: stock transformers with its usual arguments, or ranks that share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..parallel.model.documents import IGNORED
from ..parallel.model.switch import SequenceParallel
from .context_parallel import context_parallel_run

STOCK = {
    "as given": "model(**batch), as a loop of one's own calls it: stock transformers makes a cache",
    "no cache": "model(**batch, use_cache=False), as Trainer calls it",
    "mask": "with an attention_mask of ones and use_cache=False, as after tokenizers and many collators",
    "context parallel": "under accelerate's context parallelism: its hooks drop all masks, and on several GPUs torch's "
    "context_parallel shares the tokens as in Trainer; one process, on a CPU too, runs with the hooks alone",
}


@contextmanager
def running(model: nn.Module, way: str | SequenceParallel) -> Iterator[Any]:
    """A function that runs the model on a batch in one of the ways."""
    if isinstance(way, SequenceParallel):
        with way.on(model):
            yield model
        return
    if way not in STOCK:
        raise ValueError(f"stock={way!r}: expected {', '.join(map(repr, STOCK))}.")

    if way == "context parallel":
        with context_parallel_run(model) as shared:
            yield shared
        return

    def run(**batch: Any) -> Any:
        more: dict[str, Any] = {} if way == "as given" else {"use_cache": False}
        if way == "mask" and batch.get("attention_mask") is None:
            more["attention_mask"] = torch.ones_like(batch["input_ids"])
        return model(**(batch | more))

    yield run


def with_labels(batch: dict[str, Any], first: Tensor) -> dict[str, Any]:
    """The batch with labels, the tokens themselves if it has none; the first token of a document is no label."""
    labels = batch["input_ids"] if batch.get("labels") is None else batch["labels"]
    return batch | {"labels": torch.where(first, IGNORED, labels)}
