"""A model of a size, on rungs of the ladder, that takes whole training steps: their peak of memory and their time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.training.memory.checkpointing import STATE
from hf_longctx.upstream.checkpointing import enable_checkpointing
from recipes import cards

from ..benchmarks.geometries import SIZES

TINY = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
}
MODELS = SIZES | {"tiny Llama": TINY}
GIB = 2**30


@dataclass(frozen=True)
class Rungs:
    """What a model stands on.

    Args:
        memory: The ladder; None: the stock model.
        hidden: Hidden states of checkpointed layers on the host, by transformers.
        switch: Attention through SequenceParallel, also on one card.
    """

    memory: TrainingMemory | None = None
    hidden: bool = False
    switch: bool = True


@dataclass(frozen=True)
class Step:
    """What a step took: GiB of the card and of the host's pinned memory, seconds, and whether gradients are finite."""

    card: float
    host: float
    seconds: float
    finite: bool


def config_of(size: str) -> LlamaConfig:
    """Of a model of this size."""
    return LlamaConfig(**MODELS[size], max_position_embeddings=2**21, bos_token_id=None, eos_token_id=None)


class Trained:
    """A random model, its optimizer and random tokens."""

    def __init__(self, size: str, rungs: Rungs, tokens: int, fp32: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_card, self.fp32 = self.device.type == "cuda", fp32
        config = config_of(size)
        dtype = torch.float32 if fp32 or not self.on_card else torch.bfloat16
        torch.manual_seed(0)
        with self.device:
            self.model: Any = LlamaForCausalLM(config).to(dtype).train()
        world = dist.get_world_size() if dist.is_initialized() else 1
        if rungs.memory is not None:
            rungs.memory.apply(self.model)
        enable_checkpointing(self.model, {"use_reentrant": False}, offload=rungs.hidden and self.on_card)
        if rungs.switch or world > 1:
            SequenceParallel(degree=world, kind="ring" if world > 1 else "auto").apply(self.model)
        if world > 1:
            for layer in self.model.model.layers:
                fully_shard(layer)
            fully_shard(self.model)
        fused = {"fused": True} if self.on_card else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, **fused)
        generator = torch.Generator().manual_seed(1)  # the same on every rank
        self.ids = torch.randint(3, config.vocab_size, (1, tokens), generator=generator).to(self.device)

    def step(self) -> Step:
        """One whole step."""
        if self.on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.fp32 and self.on_card)
        with cast:
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        found = torch.stack([torch.isfinite(getattr(g, "_local_tensor", g)).all() for g in grads]).all()
        self.optimizer.step()
        self.optimizer.zero_grad()
        finite = bool(found & torch.isfinite(loss))  # waits for the card
        seconds = time.perf_counter() - start
        card = torch.cuda.max_memory_allocated() / GIB if self.on_card else 0.0
        return Step(card, self._host(), seconds, finite)

    def _host(self) -> float:
        """Pinned memory: torch's, which hidden states are in, and ours."""
        if not self.on_card:
            return 0.0
        torchs = torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0)
        keeper = vars(self.model.model).get(STATE)
        ours = keeper.host.bytes if keeper is not None and keeper.host is not None else 0
        return (torchs + ours) / GIB


@contextlib.contextmanager
def trained(size: str, rungs: Rungs, tokens: int, fp32: bool = False) -> Iterator[Trained]:
    """A model inside the block; its memory is free afterwards, also where a name for it lives on."""
    free()  # what an earlier block left to an exception
    made = Trained(size, rungs, tokens, fp32)
    try:
        yield made
    finally:
        vars(made).clear()
        free()


def free() -> None:
    """Give back what an earlier model had, of host memory too."""
    cards.free()
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
        torch.cuda.reset_accumulated_host_memory_stats()
        torch.cuda.reset_peak_host_memory_stats()


def no_more_than(card: float | None) -> None:
    """Give torch so many GiB of the card and no more, as if it were a smaller one."""
    if card is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card * GIB / total))
