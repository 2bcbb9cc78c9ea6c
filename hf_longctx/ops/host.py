"""Memory of the host: what pinned tensors take there, how much there is, and numbers that a GPU fetches from it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pinned import POOL

# of a process that trains, beside what is pinned: Python, torch, CUDA's libraries and the model as it was loaded
PROCESS_BYTES = 4 * 2**30
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def pinned_bytes(size: float) -> int:
    """What torch takes for a pinned tensor: the next power of two (measured: 1.71 times of 300 MiB and 12 kB)."""
    return 1 << max(0, int(size) - 1).bit_length()


def free_host_bytes(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int | None:
    """Memory that can be taken now: of this machine, or of the container if that is less. None: not known."""
    found = []
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read(meminfo), re.MULTILINE)
    if available:
        found.append(int(available[1]) * 1024)
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        files = re.search(r"^inactive_file (\d+)", _read(cgroup / "memory.stat"), re.MULTILINE)  # which make way
        found.append(int(limit) - int(used) + (int(files[1]) if files else 0))
    return max(min(found), 0) if found else None


def give_back_pinned() -> None:
    """Return the pinned memory of tensors that are gone, which torch and `pinned` keep to use it again."""
    POOL.give_back()
    if torch.cuda.is_available():
        known: Any = torch.accelerator, torch._C  # since 2.10 or so, and before
        names = "empty_host_cache", "_host_emptyCache"
        for give_back in (getattr(place, name, None) for place, name in zip(known, names, strict=True)):
            if give_back is not None:
                give_back()
                return


def send(numbers: Any, into: Tensor) -> None:
    """Write numbers of the host into a tensor of as many, as `sent` does."""
    host = torch.tensor(numbers, dtype=into.dtype, device="cpu").view(into.shape)
    into.copy_(_fetched(host, into.device), non_blocking=True)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device.

    A GPU fetches it in order with its other work, and the host goes on: from memory that is not pinned it would wait
    until all that it has launched is done.
    """
    return _fetched(x, device).to(device, non_blocking=device.type == "cuda")


def _fetched(x: Tensor, device: torch.device) -> Tensor:
    """`x` in memory that a device fetches from by itself."""
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def host_bytes(cgroup: Path = CGROUP) -> int | None:
    """Memory of this machine, or of the container if it has less. None where the system does not say."""
    found = []
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of versions 2 and 1
        text = _read(cgroup / name).strip()
        if text.isdigit():
            found.append(int(text))
    return min((size for size in found if size > 0), default=None)
