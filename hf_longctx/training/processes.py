"""The processes that a launcher such as torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def is_first() -> bool:
    """Is this the process of all launched ones that writes and prints?"""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def joined() -> Iterator[int]:
    """Inside the block the launched processes are a group, if there are several. How many they are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1 or dist.is_initialized():
        yield dist.get_world_size() if dist.is_initialized() else 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes
    finally:
        dist.destroy_process_group()
