"""Trains SmolLM2 on packs of texts in one process or in two, and says the loss of every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from hf_longctx import SequenceParallel
from hf_longctx.hub import load

from .geometry import build, prepared
from .texts import RANDOM
from .world import World

RATE = 5e-5
STOCK, OURS = "one card, stock transformers", "one card, hf_longctx"


def work(world: World, model: str, lines: list[str], batches: str) -> Iterator[dict[str, Any]]:
    """The losses of each line, from the same weights and batches; fp32 weights under bf16 autocast on a GPU."""
    data = torch.load(batches)
    for name in lines:
        if model == RANDOM:
            trained = build("SmolLM2-135M", world).float()
        else:
            trained = prepared(load(model, dtype=torch.float32, device=world.device)[0])
        more = {"use_cache": False}  # else stock transformers forgets the documents of a pack
        if name != STOCK:
            SequenceParallel(degree=world.size).apply(trained)
            more = {}
        run: Any = trained
        if world.size > 1:
            run = DistributedDataParallel(trained, device_ids=[world.rank] if world.gpu else None)
        yield {"line": name, "losses": losses(world, run, data, more)}


def losses(world: World, run: Any, data: list[dict[str, Any]], more: dict[str, Any]) -> list[float]:
    """Of every step."""
    optimizer = torch.optim.AdamW(run.parameters(), lr=RATE)
    found = []
    for batch in data:
        given = {key: x.to(world.device) for key, x in batch.items()}
        with torch.autocast("cuda", torch.bfloat16) if world.gpu else nullcontext():
            loss = run(**given, **more).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.detach())
    return torch.stack(found).tolist()
