"""`calibrate`: the costs of groups, measured on a model and the processes that will train it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...patch import unwrap
from ..flexible.costs import GroupCosts
from ..flexible.fitting import fitted
from ..flexible.loads import Load, measured
from ..flexible.plan import Group
from .flexible import card
from .forward import STATE
from .switch import SequenceParallel


def calibrate(model: nn.Module, *, tokens: int = 32768, seconds: float = 20) -> GroupCosts:
    """Measure what documents cost in groups of each size, for `SequenceParallel(degree="auto", calibration=)`.

    Every process of the training calls it, with the model as it will be trained: its dtype, its checkpointing, on its
    card. Its gradients are dropped, its weights stay.

    Args:
        model: A causal language model that SequenceParallel serves.
        tokens: The most tokens of a process that are tried, in one document.
        seconds: How long it may take, besides what first passes compile. A model that is slow here is measured with
            shorter documents.

    Returns:
        Costs, the same on every process; `write` keeps them.

    Raises:
        ValueError: What was measured does not tell what documents cost, on every process.
    """
    root: Any = unwrap(model)
    device = next(root.parameters()).device
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    with SequenceParallel(degree="auto", cut="all").on(root):
        passes = measured(lambda load: _seconds(root, load, ranks, device), ranks, tokens, seconds)
    root.zero_grad(set_to_none=True)
    agreed: list[GroupCosts | str]
    try:
        agreed = [fitted(passes, card(device))]
    except ValueError as error:
        agreed = [str(error)]
    if ranks > 1:
        dist.broadcast_object_list(agreed)  # least squares may round differently on another host
    if isinstance(agreed[0], str):
        raise ValueError(agreed[0])
    return agreed[0]


def _seconds(model: Any, load: Load, ranks: int, device: torch.device) -> float:
    """A forward and backward pass with a load in every group of its size, by the slowest process."""
    copies = ranks // load.ranks
    documents = load.documents * copies
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, documents * load.length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(load.length).repeat(documents)[None]}
    batch = {name: x.to(device) for name, x in batch.items()}
    state = vars(model)[STATE]
    if state.flexible is not None:
        state.flexible = dataclasses.replace(state.flexible, planned=lambda lengths: _copies(load, ranks))
        dist.barrier()
    _wait(device)
    start = time.perf_counter()
    model(**batch).loss.backward()
    _wait(device)
    took = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=device)
    model.zero_grad(set_to_none=True)
    if ranks > 1:
        dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def _copies(load: Load, ranks: int) -> list[Group]:
    """The same load in all groups of its size; ranks that are left over have none."""
    plan: list[Group] = []
    start = 0
    for size in (2**k for k in reversed(range(ranks.bit_length()))):
        while size <= load.ranks and start + size <= ranks:
            first = len(plan) * load.documents
            own = range(first, first + load.documents) if size == load.ranks else range(0)
            plan.append(Group(range(start, start + size), tuple(own), 0.0))
            start += size
    return plan


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
