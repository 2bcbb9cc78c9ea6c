"""Accelerate's own context parallelism, to be compared: its hooks, and torch's `context_parallel`, as in Trainer."""

# B rows, T tokens of a row, V vocabulary
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.big_modeling import _attach_context_parallel_hooks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ..parallel.model.documents import IGNORED

SHARED = ("input_ids", "labels", "shift_labels", "attention_mask", "position_ids")  # what Trainer splits


@contextmanager
def context_parallel_run(model: nn.Module) -> Iterator[Any]:
    """A function that runs the model as accelerate does: without masks, and on as many processes as were launched."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    with _without_masks(model), ExitStack() as entered:

        def run(**batch: Any) -> Any:
            if processes == 1:
                return model(**batch, use_cache=False)
            entered.close()  # of the batch before
            return _on_ranks(model, batch, processes, entered)

        yield run


@contextmanager
def _without_masks(model: nn.Module) -> Iterator[None]:
    """Inside the block accelerate's hooks drop the mask of each layer. It refuses models with windows by itself."""
    before = {module: set(module._forward_pre_hooks) for module in model.modules()}
    _attach_context_parallel_hooks(model)
    try:
        yield
    finally:
        for module, kept in before.items():
            for added in set(module._forward_pre_hooks) - kept:
                del module._forward_pre_hooks[added]
                module._forward_pre_hooks_with_kwargs.pop(added, None)


def _on_ranks(model: nn.Module, batch: dict[str, Any], processes: int, entered: ExitStack) -> Any:
    """Loss and logits of the whole batch. Torch's context stays open, for backward, until `entered` is closed."""
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard

    ids_BT = batch["input_ids"]
    _check(ids_BT, next(model.parameters()).dtype, processes)
    positions_BT = batch.get("position_ids")
    if positions_BT is None:
        positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    shifted_BT = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    batch = batch | {"position_ids": positions_BT, "shift_labels": shifted_BT}
    # torch resizes them in place
    parts = {name: batch[name].clone() for name in SHARED if batch.get(name) is not None}
    mesh = init_device_mesh(ids_BT.device.type, (processes,))
    buffers = list(parts.values())
    entered.enter_context(
        context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1] * len(buffers), no_restore_buffers=set(buffers))
    )
    out = model(**(batch | parts), num_items_in_batch=(shifted_BT != IGNORED).sum(), use_cache=False)
    (out.logits,) = context_parallel_unshard(mesh, [out.logits.detach()], [1])
    part, total = out.loss, out.loss.detach().clone()
    dist.all_reduce(total)
    # the value is that of all processes, and so is the mean over them of the gradients
    out.loss = total + processes * (part - part.detach())
    return out


def _check(ids_BT: Tensor, dtype: torch.dtype, processes: int) -> None:
    if ids_BT.device.type != "cuda":
        raise ValueError(
            f"context parallelism on {processes} processes and {ids_BT.device.type}: torch shares attention kernels "
            f"of GPUs only. Start one process, which shows what accelerate's hooks make of the batch, or use GPUs."
        )
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"context parallelism in {dtype}: torch shares flash attention, which expects bfloat16 or float16. Use "
            f"--dtype bfloat16."
        )
    if ids_BT.shape[1] % (2 * processes):
        raise ValueError(
            f"context parallelism of {ids_BT.shape[1]} tokens a row: torch expects a multiple of {2 * processes}, "
            f"twice the number of processes. Pad the batch on the right, or leave tokens out."
        )
