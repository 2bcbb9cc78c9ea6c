"""Pinned host memory that several threads make, ahead of need too, and that is kept to be used again.

CUDA's own pinned memory is found, cleared and locked by one thread, in a call that the next kernels wait for. Here
several touch memory of the system, in huge pages where it has some, and register it with CUDA while a device computes.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import os
import sys
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import torch
from torch import Tensor

logger = logging.getLogger("hf_longctx")
LEAST = 2**20  # bytes from which on memory is made here; smaller pieces are torch's
HUGE = 2**21  # bytes of a huge page
THREADS = 8  # at most
REGISTERING = 2  # of them at once: the driver has one lock for that, which launches of kernels wait for too
PORTABLE_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped
# of a device, by the driver's numbers: HOST_REGISTER_SUPPORTED, CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, and not
# PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES, where registering locks nothing
ATTRIBUTES = {99: 1, 91: 1, 100: 0}
_TURN = threading.Semaphore(REGISTERING)


@dataclass
class Pinning:
    """What was made so far, for benchmarks.

    Args:
        made: Bytes.
        touching: Seconds in which threads found memory, added up.
        registering: Seconds in which they registered it.
        again: Bytes of earlier texts that were used again.
        waits: Times that someone waited for memory, and for how many seconds in all and at most.
        waited: See `waits`.
        longest: See `waits`.
        torchs: Pieces that torch pinned instead, and seconds.
        torchs_seconds: See `torchs`.
    """

    made: int = 0
    touching: float = 0.0
    registering: float = 0.0
    again: int = 0
    waits: int = 0
    waited: float = 0.0
    longest: float = 0.0
    torchs: int = 0
    torchs_seconds: float = 0.0


class PinnedBlock:
    """Registered memory. OSError or RuntimeError where there is none.

    Args:
        size: In bytes.
        device: Whose context registers it, and which uses it; any other may, later.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device, start = size, device, perf_counter()
        self._memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):  # a child would be given copies of all that is locked
            with suppress(AttributeError, OSError):
                self._memory.madvise(getattr(mmap, advice))
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._first = -whole.data_ptr() % HUGE
        del whole
        # a tensor whose storage begins there: torch asks of that, not of the tensor, whether it is pinned
        mine = torch.frombuffer(self._view(size), dtype=torch.uint8)
        self.address = mine.data_ptr()
        mine[:: mmap.PAGESIZE].zero_()
        self.touching = perf_counter() - start
        with _TURN:
            start = perf_counter()
            register(mine, device)
            self.registering = perf_counter() - start

    def _view(self, size: int) -> memoryview:
        return memoryview(self._memory)[self._first : self._first + size]

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, back: deque[PinnedBlock]) -> Tensor:
        """An empty one in this memory, which goes `back` once nothing refers to the tensor's storage."""
        view = self._view(math.prod(shape) * dtype.itemsize)
        weakref.finalize(view, back.append, self).atexit = False  # at any time, so it takes no lock
        return torch.frombuffer(view, dtype=dtype).view(*shape)


class Pool:
    """Blocks that are being made, or not used any more, by their size in bytes."""

    def __init__(self) -> None:
        self.seen = Pinning()
        self._lock = threading.Lock()
        self._coming: dict[int, deque[Future[PinnedBlock]]] = defaultdict(deque)
        self._unused: dict[int, list[PinnedBlock]] = defaultdict(list)
        self._back: deque[PinnedBlock] = deque()  # no tensor is left, but the device may not be done with them
        # all of them, so that no memory is unmapped while it is registered, nor by a forked child
        self._live: set[PinnedBlock] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._refused = False  # was the first memory that was to be registered? Then torch pins all

    def available(self, size: int) -> int:
        """How many pieces of this many bytes need no memory more: those that are being made count."""
        size = _rounded(size)
        with self._lock:
            back = sum(block.size == size for block in list(self._back))
            return len(self._coming[size]) + len(self._unused[size]) + back

    def coming_bytes(self) -> int:
        """Of all that is being made."""
        with self._lock:
            return sum(size * sum(not each.done() for each in made) for size, made in self._coming.items())

    def ahead(self, size: int, count: int, device: torch.device | None) -> None:
        """Begin to make what is lacking of so many pieces. There must be room for them; nothing is waited for."""
        if self._can(size, device) and not torch.compiler.is_compiling():
            assert device is not None
            for _ in range(count - self.available(size)):
                future = self._begin(_rounded(size), device)
                with self._lock:
                    self._coming[_rounded(size)].append(future)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """A pinned tensor that holds anything, read by `device`; not pinned where there is no GPU."""
        if torch.compiler.is_compiling():
            return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=torch.cuda.is_available())
        size, block = math.prod(shape) * dtype.itemsize, None
        if self._can(size, device):
            assert device is not None
            block = self._take(_rounded(size), device)
        if block is not None:
            assert device is not None
            block.device = device  # which is waited for before the memory is used again
            return block.tensor(shape, dtype, self._back)
        start = perf_counter()
        # which says what is wrong, if that is why there is no block
        found = torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=torch.cuda.is_available())
        self.seen.torchs += 1
        self.seen.torchs_seconds += perf_counter() - start
        return found

    def _can(self, size: int, device: torch.device | None) -> bool:
        return size >= LEAST and not self._refused and device is not None and can_register(device)

    def give_back(self) -> None:
        """Return to the system all that no tensor is in."""
        if os.getpid() != self._process:
            return
        with self._lock:
            coming = [future for futures in self._coming.values() for future in futures]
            self._coming.clear()
        for future in coming:
            if not future.cancel() and future.exception() is None:
                self._back.append(future.result())
        self._settle()
        with self._lock:
            unused = [block for blocks in self._unused.values() for block in blocks]
            self._unused.clear()
        if unused:
            done = self._executor().map(lambda block: unregister(block.address, block.device), unused)
            self._live.difference_update(block for block, free in zip(unused, done, strict=True) if free)

    def _begin(self, size: int, device: torch.device) -> Future[PinnedBlock]:
        return self._executor().submit(self._make, size, device)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                few = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
                self._threads = ThreadPoolExecutor(max(1, min(THREADS, len(few) // 2)), "hf_longctx-pinned")
            return self._threads

    def _make(self, size: int, device: torch.device) -> PinnedBlock:
        block = PinnedBlock(size, device)
        with self._lock:
            self._live.add(block)
            seen = self.seen
            seen.made, seen.touching = seen.made + size, seen.touching + block.touching
            seen.registering += block.registering
        return block

    def _take(self, size: int, device: torch.device) -> PinnedBlock | None:
        """One of them, made if there is none; None where none can be made."""
        with self._lock:
            future = self._coming[size].popleft() if self._coming[size] else None
        if future is None:
            self._settle()
            with self._lock:
                if self._unused[size]:
                    self.seen.again += size
                    return self._unused[size].pop()
            future = self._begin(size, device)
        start, waits = perf_counter(), not future.done()
        try:
            return future.result()
        except Exception as error:  # of the system, CUDA or torch; torch's own call says it to the user
            self._refused = not self._live
            logger.info("torch pins memory for keys on the host, in more time: %s", error)
            return None
        except BaseException:  # Ctrl-C, while it is being made
            with self._lock:
                self._coming[size].appendleft(future)
            raise
        finally:
            took = perf_counter() - start
            if waits:
                self.seen.waits, self.seen.waited = self.seen.waits + 1, self.seen.waited + took
                self.seen.longest = max(self.seen.longest, took)

    def _settle(self) -> None:
        """Let what has come back be used again, once devices are done with it: kernels went by its addresses."""
        back: list[PinnedBlock] = []
        with suppress(IndexError):
            while True:
                back.append(self._back.popleft())
        try:
            for device in {block.device for block in back}:
                torch.cuda.synchronize(device)
        except BaseException:
            self._back.extend(back)
            raise
        with self._lock:
            for block in back:
                self._unused[block.size].append(block)


POOL = Pool()


def _rounded(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


@lru_cache
def can_register(device: torch.device) -> bool:
    """Can memory of the system be registered for a device, which then reads it by the same addresses?"""
    if device.type != "cuda" or torch.version.cuda is None or sys.platform != "linux":
        return False
    try:
        driver, found = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        return all(
            driver.cuDeviceGetAttribute(ctypes.byref(found), attribute, n) == 0 and found.value == wanted
            for n in range(torch.cuda.device_count())  # addresses differ where one visible device cannot
            for attribute, wanted in ATTRIBUTES.items()
        )
    except (OSError, AttributeError):
        return False


def register(memory: Tensor, device: torch.device) -> None:
    """Lock memory for a device. RuntimeError where that fails; called by our threads alone, as CUDA keeps the error."""
    with torch.cuda.device(device):
        error = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, PORTABLE_MAPPED))
    if error:
        raise RuntimeError(f"cudaHostRegister of {memory.nbytes:,} bytes: error {error}")
    if not memory.is_pinned():
        unregister(memory.data_ptr(), device)
        raise RuntimeError(f"cudaHostRegister of {memory.nbytes:,} bytes: they are not pinned afterwards")


def unregister(address: int, device: torch.device) -> bool:
    """Unlock it; False where that fails, and the memory must stay."""
    with torch.cuda.device(device):
        return not int(torch.cuda.cudart().cudaHostUnregister(address))
