"""accelerate's own context parallelism: FSDP2, keys gathered, documents not told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .world import World

IGNORED = -100


class Rival:
    """A model and its optimizer prepared by accelerate, for batches that are cut as its guide says."""

    def __init__(self, model: Any, world: World) -> None:
        from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig
        from accelerate.utils import TorchContextParallelConfig

        handler = TorchContextParallelConfig(cp_comm_strategy="allgather")
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[type(model.model.layers[0]).__name__],
            reshard_after_forward=True,
        )
        self.world = world
        self.accelerator = Accelerator(
            parallelism_config=ParallelismConfig(cp_size=world.size, cp_handler=handler), fsdp_plugin=plugin
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    @contextmanager
    def shared(self, batch: dict[str, Tensor], **more: Tensor) -> Iterator[dict[str, Any]]:
        """Inside the block, for forward and backward: this rank's part of a batch, as the model's arguments.

        The mean over processes of the losses, as FSDP2 takes it of gradients, is the loss of the batch.
        """
        ids, shifted = batch["input_ids"], pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        positions = batch.get("position_ids", torch.arange(ids.shape[1], device=ids.device)[None])
        whole = {"input_ids": ids, "position_ids": positions, "shift_labels": shifted}
        parts = {name: x.clone() for name, x in (whole | more).items()}  # cut in place
        items = (shifted != IGNORED).sum() / self.world.size
        with self.accelerator.maybe_context_parallel(
            buffers=list(parts.values()), buffer_seq_dims=[1] * len(parts), no_restore_buffers=set(parts.values())
        ):
            yield parts | {"num_items_in_batch": items, "use_cache": False}

    @torch.no_grad()
    def log_probs(self, batch: dict[str, Tensor]) -> Tensor:
        """(1, T) of every label, in the order of the batch."""
        places = torch.arange(batch["input_ids"].shape[1], device=self.world.device)[None]
        with self.shared(batch, places=places) as given:
            where = given.pop("places")
            mine = self.model(**given).logits
        values, places = (self._every(x) for x in (mine, where))
        return torch.empty_like(values).index_copy_(1, places[0], values)

    def _every(self, x_1L: Tensor) -> Tensor:
        parts = [torch.empty_like(x_1L) for _ in range(self.world.size)]
        dist.all_gather(parts, x_1L.contiguous())
        return torch.cat(parts, 1)
