"""One run of a setting in processes of its own: bytes at the peak of a step, and its seconds, as a line of JSON.

[torchrun --nproc_per_node 2] python -m recipes.far.one_step SETTING    # a number in SETTINGS, or tiny:NUMBER
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.training.processes import is_first, joined
from hf_longctx.upstream.checkpointing import enable_checkpointing

from .counting import Counter
from .settings import MODELS, SETTINGS, TINY_SETTINGS, Setting

WARM_UP = 4096  # tokens of the step that makes the optimizer's states, where the measured step is long
LONG = 200_000


def find(name: str) -> Setting:
    """The setting of this number."""
    return TINY_SETTINGS[int(name[5:])] if name.startswith("tiny:") else SETTINGS[int(name)]


def measure(of: Setting) -> dict[str, Any]:
    """Run a step to warm up, and measure the next one; its length is that of the setting."""
    run, cuda = of.run, torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(MODELS[of.model], dtype=dtype).train()
    prepare(model, of)
    ddp = DistributedDataParallel(model) if run.gpus > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(tokens: int) -> None:
        ids = torch.arange(tokens, device=device)[None] % 500
        with torch.autocast(device.type, torch.bfloat16) if run.precision == "mixed" else nullcontext():
            loss = ddp(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise RuntimeError(f"{of.name}: the loss is {loss.item()}")

    step(WARM_UP if run.tokens > LONG else run.tokens)
    if not cuda:
        return on_cpu(step, run.tokens, model, optimizer)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    step(run.tokens)
    torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "free_bytes": torch.cuda.mem_get_info()[0],
        "total_bytes": torch.cuda.mem_get_info()[1],
        "gpu": torch.cuda.get_device_name(),
        **pinned(),
    }


def pinned() -> dict[str, int]:
    """Pinned memory of this process at its peak, by torch's count, where it has one."""
    stats = getattr(torch.cuda, "host_memory_stats", None)
    found = stats() if stats is not None else {}
    return {"pinned_bytes": int(found.get("allocated_bytes.peak", 0))}


def prepare(model: Any, of: Setting) -> None:
    """The ladder's rungs, ranks and checkpointing, as the setting has them."""
    run = of.run
    if run.chunked_loss or run.tile or run.remat or run.fused_norms:
        rungs = {name: getattr(run, name) for name in ("chunked_loss", "tile", "remat", "fused_norms")}
        TrainingMemory(**rungs, offload=run.keep_on_host).apply(model)
    if run.ranks > 1:
        SequenceParallel(degree=run.ranks, kind=run.kind).apply(model)
    if run.checkpointing:
        enable_checkpointing(model, {"use_reentrant": False}, offload=run.offload)


def on_cpu(step: Any, tokens: int, model: Any, optimizer: Any) -> dict[str, Any]:
    """Without a GPU: tensors are counted, beside weights and the optimizer's states."""
    states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    counter = Counter()
    held = [*model.parameters(), *states]
    for x in held:
        counter.ignore(x)
    begin = time.perf_counter()
    with counter:
        step(tokens)
    beside = sum(x.numel() * x.element_size() for x in held)
    return {"seconds": time.perf_counter() - begin, "peak_bytes": counter.peak + beside, "gpu": "cpu"}


def main(name: str) -> None:
    """Measure, and print what the rank that held most found."""
    with joined() as processes:
        try:
            found = measure(find(name))
        except torch.OutOfMemoryError as error:
            print(json.dumps({"out_of_memory": str(error).splitlines()[0]}), flush=True)
            os._exit(1)  # other ranks wait in an exchange: the launcher ends them
        every: list[Any] = [found]
        if processes > 1:
            every = [None] * processes
            dist.all_gather_object(every, found)
        if is_first():
            print(json.dumps(max(every, key=lambda one: one["peak_bytes"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
