"""What is compared: a plain training loop on one card or on two, by stock transformers, hf_longctx and accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.parallel.model import division, forward

from .geometry import build
from .packs import GlobalZigzag
from .rival import Rival
from .world import Laps, World

WARM_UP = 2  # steps
Batch = dict[str, Tensor]
KEPT = TrainingMemory(chunked_loss=False, tile=None, remat="attention")
FUSED = TrainingMemory(chunked_loss=False, tile=None, fused_norms=True)


@dataclass(frozen=True)
class Line:
    """One way to train.

    Args:
        kind: Of SequenceParallel; "stock" and "accelerate" do without it.
        wrap: "fsdp2", "ddp", or "" for one process.
        cut: Of SequenceParallel; "global" is a zigzag over the whole pack, as other packages have it.
        kept: Attention is kept from recomputation.
        fused: Norms are one kernel each, which the host launches sooner than seven.
    """

    kind: str
    wrap: str = "fsdp2"
    cut: str = "balance"
    kept: bool = False
    fused: bool = False

    @property
    def processes(self) -> int:
        return 2 if self.wrap else 1


ONE, ONE_OURS, RIVAL = "one card", "one card, hf_longctx", "accelerate"
LINES = {
    ONE: Line("stock", ""),
    ONE_OURS: Line("auto", ""),
    "auto, FSDP2": Line("auto"),
    "auto, DDP": Line("auto", "ddp"),
    "one card, fused norms": Line("stock", "", fused=True),
    "fused norms, FSDP2": Line("auto", fused=True),
    "fused norms, DDP": Line("auto", "ddp", fused=True),
    "ring, FSDP2": Line("ring"),
    "gather, FSDP2": Line("gather"),
    "ulysses, FSDP2": Line("ulysses"),
    "attention kept": Line("auto", kept=True),
    "cut all": Line("auto", cut="all"),
    "global zigzag": Line("auto", cut="global"),
    RIVAL: Line("accelerate"),
}


class Loop:
    """A plain loop that trains one model in one way."""

    def __init__(self, world: World, geometry: str, line: Line) -> None:
        self.world, self.line = world, line
        self.model = build(geometry, world)
        if line.kept:
            KEPT.apply(self.model)
        if line.fused:
            FUSED.apply(self.model)
        if line.kind == "accelerate":
            rival = Rival(self.model, world)
            self.run: Any = rival.model
            self.optimizer: Any = rival.optimizer
            self.shared: Any = rival.shared
            return
        if line.kind != "stock":
            cut = "balance" if line.cut == "global" else line.cut
            SequenceParallel(degree=world.size, kind=line.kind, cut=cut).apply(self.model)
        self.run = wrapped(self.model, line.wrap, world)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=world.gpu)
        # stock transformers forgets the documents of a pack where a cache is made
        more = {"use_cache": False} if line.kind == "stock" else {}
        self.shared = lambda batch: nullcontext(batch | more)

    def step(self, batch: Batch) -> Tensor:
        """One step; the loss."""
        with layout_of(self.line), self.shared(batch) as given:
            loss = self.run(**given).loss
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def timed(self, batch: Batch, steps: int) -> dict[str, Any]:
        """Seconds of each step after the warm-up, the first loss, and the peak of memory."""
        self.world.begin_peak()
        first = self.step(batch)
        for _ in range(WARM_UP - 1):
            self.step(batch)
        laps = Laps(self.world)
        laps.mark()
        for _ in range(steps):
            self.step(batch)
            laps.mark()
        seconds = self.world.worst(*laps.seconds())
        state = vars(self.model).get(forward.STATE)
        exchange = {"exchange": state.said} if state else {}  # what auto takes
        return exchange | {"seconds": seconds, "GiB": self.world.peak_gib(), "loss": self.world.mean(float(first))}


def wrapped(model: Any, wrap: str, world: World) -> Any:
    """The model under FSDP2 or DDP."""
    if wrap == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    if wrap == "ddp":
        cards = [world.rank] if world.gpu else None
        return DistributedDataParallel(model, device_ids=cards, gradient_as_bucket_view=True)
    return model


def layout_of(line: Line) -> AbstractContextManager[Any]:
    """Inside the block the switch lays out a pack as other packages do, if the line says so."""
    return mock.patch.object(division, "Layout", GlobalZigzag) if line.cut == "global" else nullcontext()
