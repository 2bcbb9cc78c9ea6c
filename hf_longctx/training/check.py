"""`train_check`: is a packed batch trained on as its documents are, one by one? On one's own model and batch."""

# B rows, T tokens of a row, L tokens of a document, V vocabulary
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.checked import layer_tolerance, relative_error
from ..parallel.layout import Layout
from ..parallel.model.documents import IGNORED, START, Documents, marks_of, positions_of
from ..parallel.model.forward import STATE
from ..parallel.model.switch import SequenceParallel
from .ways import running, with_labels

MOST_CHANGES = 8  # documents of which a token is changed


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Args:
        name: What was compared.
        holds: Whether it agrees.
        off: The relative difference; None where nothing can be compared.
        where: What differs first, in words.
    """

    name: str
    holds: bool
    off: float | None = None
    where: str = ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What one stock process makes of the documents of a batch, each alone.

    Args:
        loss: Of the batch.
        logits: (L, V) of each document.
        grads: Of each parameter.
    """

    loss: Tensor
    logits: list[Tensor]
    grads: dict[str, Tensor]


def train_check(model: Any, batch: dict[str, Any], way: str | SequenceParallel) -> Iterator[Finding]:
    """Compare a way of running a packed batch with its documents one by one. Every process of a group calls it.

    Args:
        model: A causal language model of transformers. Its gradients are overwritten.
        batch: What its forward is given: input_ids, and what says where documents are.
        way: A switch, or a key of `ways.STOCK`.
    """
    model.eval()  # without dropout
    device = next(model.parameters()).device
    batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
    ids, edges = batch["input_ids"], batch.get("cu_seq_lens_q")
    positions = positions_of((ids.shape[0], ids.shape[1]), batch.get("position_ids"), edges, device)
    marks = marks_of(positions, batch.get("attention_mask"), edges)
    documents, batch = Documents.of(marks.cpu()), with_labels(batch, marks == START)
    _check_batch(model, batch)
    limit = layer_tolerance(next(model.parameters()).dtype)
    truth = one_by_one(model, batch, documents)
    with running(model, way) as run:
        yield _leaks(run, batch, documents, limit)
        model.zero_grad()
        out = run(**batch)
        out.loss.backward()
        off = relative_error(out.loss.detach(), truth.loss)
        yield Finding("loss", off <= limit, off, f"{out.loss.item():.6f}, expected {truth.loss.item():.6f}")
        layout = vars(run)[STATE].divide(documents.lengths).layout if isinstance(way, SequenceParallel) else None
        yield from _rows(out.logits.detach(), documents, truth, layout, limit)
    yield _gradients(model, truth, limit)
    model.zero_grad()


def _check_batch(model: nn.Module, batch: dict[str, Any]) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    labels = batch["labels"]
    for name, ids, besides in (
        ("input_ids", batch["input_ids"], ""),
        ("labels", labels[labels != IGNORED], f" (or {IGNORED}, no target)"),
    ):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"{name} from {int(ids.min())} to {int(ids.max())}: expected 0 to {vocabulary - 1}{besides}, the "
                f"vocabulary of {type(model).__name__}. Make the batch with the tokenizer of this model."
            )
    if not bool((batch["labels"] != IGNORED).any()):
        raise ValueError(
            "labels: no token of the batch is a target, so there is no loss to compare. Give one with labels."
        )


def one_by_one(model: nn.Module, batch: dict[str, Any], documents: Documents) -> Truth:
    """Run each document alone, through the stock model."""
    ids, labels = (batch[name].flatten()[documents.where_N] for name in ("input_ids", "labels"))
    items = (labels != IGNORED).sum()
    loss, logits = torch.zeros((), device=ids.device), []
    model.zero_grad()
    for part, expected in zip(ids.split(documents.lengths), labels.split(documents.lengths), strict=True):
        out = model(input_ids=part[None], labels=expected[None], num_items_in_batch=items, use_cache=False)
        out.loss.backward()
        loss += out.loss.detach()
        logits.append(out.logits[0].detach())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Truth(loss, logits, grads)


@torch.no_grad()
def _leaks(run: Any, batch: dict[str, Any], documents: Documents, limit: float) -> Finding:
    """Change the last token of a document, the nearest to the next one: the logits of no other may change."""
    name, count = "documents do not see each other", len(documents.lengths)
    if count < 2:
        return Finding(name, True, None, "the batch has one document only")
    before = _by_document(run(**batch).logits, documents)
    vocabulary = before[0].shape[-1]
    for changed in sorted({count * n // MOST_CHANGES for n in range(MOST_CHANGES)}):
        place = int(documents.where_N[sum(documents.lengths[: changed + 1]) - 1])
        ids = batch["input_ids"].clone().flatten()
        ids[place] = (ids[place] + 1) % vocabulary
        after = _by_document(run(**(batch | {"input_ids": ids.view_as(batch["input_ids"])})).logits, documents)
        for other in range(count):
            # token by token: a long document would hide one that has changed
            moved_L, size_L = (after[other] - before[other]).norm(dim=-1), before[other].norm(dim=-1)
            off = float((moved_L / size_L.clamp(min=1e-30)).max())
            if other != changed and off > limit:
                where = f"a token of document {changed} changes the logits of document {other}"
                return Finding(name, False, off, where)
    return Finding(name, True)


def _rows(logits: Tensor, documents: Documents, truth: Truth, layout: Layout | None, limit: float) -> Iterator[Finding]:
    """The logits of each rank's tokens; without ranks, of all."""
    got, right = torch.cat(_by_document(logits, documents)), torch.cat(truth.logits)
    for rank, places in enumerate(layout.places if layout else [torch.arange(len(got))]):
        off = relative_error(got[places], right[places]) if len(places) else 0.0
        rows = f"logits of the {len(places)} tokens of rank {rank}" if layout else "logits"
        yield Finding(rows, off <= limit, off)


def _gradients(model: nn.Module, truth: Truth, limit: float) -> Finding:
    """The mean over processes of every gradient, as DDP takes it: the first that differs, else the worst."""
    worst = 0.0
    for name, p in model.named_parameters():
        if name not in truth.grads or p.grad is None:
            continue
        grad = p.grad.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(grad)
            grad /= dist.get_world_size()
        off = relative_error(grad, truth.grads[name])
        if off > limit:
            return Finding("gradients", False, off, name)
        worst = max(worst, off)
    return Finding("gradients", True, worst, f"of {len(truth.grads)} parameters")


def _by_document(logits: Tensor, documents: Documents) -> list[Tensor]:
    flat = logits.flatten(0, 1)[documents.where_N.to(logits.device)]
    return list(flat.split(documents.lengths))
