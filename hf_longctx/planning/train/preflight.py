"""`preflight`: refuses a training step that does not fit before it is tried, with the numbers and what would fit."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import nn

from ...console.units import show_bytes, show_seconds
from ...ops.host import host_bytes
from ...patch import unwrap
from ..hardware import H100_HOST, MACHINES, Machine
from ..shape import build
from .changes import FitSearch
from .fits import Room, longest
from .run import TrainingRun
from .settings import settings_of
from .sizes import sizes_of

# what a trainer's user can set; more GPUs and FSDP2 are another launch
SETTABLE = frozenset(
    {"checkpointing", "offload", "chunked_loss", "tile", "remat", "keep_on_host", "fused_norms", "kind"}
)
logger = logging.getLogger("hf_longctx")


class Preflight:
    """Looks at each batch that is longer than those before it.

    Args:
        search: Of the model, on this machine.
        run: The settings; its tokens are those of each batch.
    """

    def __init__(self, search: FitSearch, run: TrainingRun) -> None:
        self.search, self.run, self.largest = search, run, 0

    def check(self, tokens: int) -> None:
        """ValueError if a step of so many tokens, those of a group's batch, does not fit."""
        if tokens <= self.largest:
            return
        run = self.run.but(tokens=tokens)
        option = self.search.option(run)
        if option.lacks:
            most = longest(self.search.sizes, run, self.search.room) or 0
            raise ValueError(
                f"A batch of {tokens:,} tokens does not fit: {option.lacks}. {self._remedy(run)}At most {most:,} "
                f"tokens fit as it is. If the prediction is wrong, set preflight=False."
            )
        if not self.largest:
            need = f"{show_bytes(option.need.device)} of {show_bytes(self.search.room.device)}"
            logger.info("a step of %s tokens: %s, %s predicted", tokens, need, show_seconds(option.time.step))
        self.largest = tokens

    def _remedy(self, run: TrainingRun) -> str:
        found = self.search.cheapest(run)
        if found is None:
            return "No setting would make it fit: take more GPUs or fewer tokens. "
        took = f"{show_bytes(found.need.device)}, {show_seconds(found.time.step)} a step"
        return f"The cheapest that fits: {found.python} ({took}). "


def preflight(
    model: nn.Module, args: Any, *, shard: bool = False, room: Room | None = None, **settings: Any
) -> Preflight | None:
    """A `Preflight` of a model and `TrainingArguments`.

    None where nothing can be said: without CUDA, without a config, or of quantized weights.

    Args:
        model: A causal language model, before it is wrapped by DDP.
        args: Its trainer's.
        shard: FSDP2 shards it.
        room: What there is. None: what is free on this process' card, and what its host has.
        settings: Of `TrainingRun`, which arguments do not say: degree, kind, chunked_loss, tile, remat, keep_on_host,
            fused_norms.
    """
    root: Any = unwrap(model)
    unknown = getattr(root, "config", None) is None or getattr(root, "is_quantized", False)
    if unknown or (room is None and not torch.cuda.is_available()):
        return None
    gpus = int(getattr(args, "world_size", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", gpus))
    try:
        sizes = sizes_of(build(root.config))
        run = TrainingRun(
            tokens=1, gpus=gpus, hosts=max(1, gpus // local), shard=shard, **settings_of(model, args), **settings
        )
    except ValueError as error:  # it is a help, not a condition: a model that cannot be sized is trained as well
        logger.warning("no prediction of memory: %s", error)
        return None
    only = SETTABLE if run.ranks > 1 else SETTABLE - {"kind"}
    return Preflight(FitSearch(sizes, _machine(), room or _room(), only), run)


def _room() -> Room:
    """What torch can have on the current card, with what it has, and what the host has."""
    free, _ = torch.cuda.mem_get_info()
    return Room(free + torch.cuda.memory_reserved() + H100_HOST.runtime_bytes, host_bytes())


def _machine() -> Machine:
    """The card, by its name; an H100 where it is not known. It only puts settings in order."""
    name = torch.cuda.get_device_name().lower().replace(" ", "") if torch.cuda.is_available() else ""
    return next((machine for key, machine in MACHINES.items() if key in name), MACHINES["h100"])
