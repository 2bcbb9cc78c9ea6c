"""Plain loops under DDP and FSDP2: the loss and gradient norm of each of three steps, evaluation, and its rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_longctx import SequenceParallel

from .models import batch, checkpointed, make, relative
from .pool import Pool

PACKS = [[61, 3, 1, 40], [33, 33, 2], [101], [5, 70, 9, 13], [20, 81], [77, 4], [50, 50], [7, 90]]
EXACT = 1e-5


def steps(model: Any, groups: int, mine: list[int], **more: Any) -> tuple[list[float], list[float]]:
    """Three steps of two packs each; `mine` are those of a step that this process runs, of one of `groups`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, norms = [], []
    for step in range(3):
        packs = [batch([pack]) for pack in PACKS[2 * step : 2 * step + 2]]
        items = torch.tensor(sum(int((pack["labels"][:, 1:] != -100).sum()) for pack in packs))
        total = torch.zeros(())
        for i in mine:
            loss = model(**packs[i], num_items_in_batch=items, **more).loss
            (loss * groups).backward()  # processes are averaged, packs are summed
            total += loss.detach()
        losses.append(float(total))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


@torch.no_grad()
def evaluated(model: Any, **more: Any) -> tuple[float, torch.Tensor]:
    """The loss of a pack that was not trained on, and its rows."""
    model.eval()
    out = model(**batch([PACKS[-1]]), **more)
    return float(out.loss), out.logits


def on_a_rank(wrapper: str, name: str, checkpointing: str) -> dict[str, float]:
    groups = dist.get_world_size() // 2
    mesh = init_device_mesh("cpu", (groups, 2), mesh_dim_names=("dp", "sp"))
    right, model = make(name), make(name)
    losses, norms = steps(right, 1, [0, 1], use_cache=False)
    loss, rows = evaluated(right, use_cache=False)
    if checkpointing:
        checkpointed(model, checkpointing)
    patch = SequenceParallel(degree=2, gather_logits=True).apply(model, mesh["sp"])
    wrapped: Any = model
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh._flatten("all"))
    mine = [0, 1] if groups == 1 else [mesh["dp"].get_local_rank()]
    own, found_norms = steps(wrapped, groups, mine)
    total = torch.tensor(own)
    dist.all_reduce(total, group=mesh["dp"].get_group())
    found_loss, found_rows = evaluated(wrapped)
    patch.undo()
    off = {f"loss {i}": abs(x / y - 1) for i, (x, y) in enumerate(zip(total.tolist(), losses, strict=True))}
    off |= {f"norm {i}": abs(x / y - 1) for i, (x, y) in enumerate(zip(found_norms, norms, strict=True))}
    return off | {"evaluation": abs(found_loss / loss - 1), "rows": relative(found_rows, rows)}


CASES = [
    ("ddp", "llama", "plain"),
    ("ddp", "gemma3", "reentrant"),
    ("fsdp2", "llama", "plain"),
    ("fsdp2", "gemma3", ""),
]


@pytest.mark.parametrize(("wrapper", "name", "checkpointing"), CASES)
def test_two_ranks(two: Pool, wrapper: str, name: str, checkpointing: str) -> None:
    for off in two.run(on_a_rank, wrapper, name, checkpointing):
        assert max(off.values()) < EXACT, off


@pytest.mark.parametrize(("wrapper", "name", "checkpointing"), CASES[::3])
def test_two_groups_of_two(four: Pool, wrapper: str, name: str, checkpointing: str) -> None:
    for off in four.run(on_a_rank, wrapper, name, checkpointing):
        assert max(off.values()) < EXACT, off
