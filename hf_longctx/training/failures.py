"""A process that fails says its rank and why, and the launcher's summary names the one that failed first."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..parallel.model.agreement import RefusedElsewhereError

logger = logging.getLogger("hf_longctx")
PEER_GONE = ("closed by peer", "reset by peer", "broken pipe", "socket closed")  # gloo, of a rank that has ended
PATIENCE = 20  # seconds
MEMORY = (
    "Use more ranks for a batch (degree), gradient checkpointing, shorter packs, or FSDP2, which shards the model too."
)


def name_failures(rank: int, processes: int) -> None:
    """From now on an exception that ends this process is logged with its rank, and recorded for the launcher."""
    before = sys.excepthook
    if processes == 1 or isinstance(before, NamingHook):
        return
    sys.excepthook = NamingHook(rank, processes, before)


class NamingHook:
    """`sys.excepthook` of a rank.

    Args:
        rank: Of all processes.
        processes: How many there are.
        before: The hook that prints the traceback.
    """

    def __init__(self, rank: int, processes: int, before: Any) -> None:
        self.rank, self.processes, self.before = rank, processes, before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Say it, then print the traceback as before."""
        who = f"rank {self.rank} of {self.processes}"
        if not isinstance(error, Exception):  # Ctrl-C
            self.before(kind, error, trace)
        elif caused_elsewhere(error):
            logger.error("%s stops since another rank has ended: %s", who, _first_line(error))
            self.before(kind, error, trace)
            _wait_for_the_launcher()
        else:
            logger.error("%s failed: %s: %s", who, kind.__name__, _first_line(error))
            if isinstance(error, torch.OutOfMemoryError):
                logger.error("%s is out of memory. %s", who, MEMORY)
            _record(error)
            self.before(kind, error, trace)
            if hasattr(signal, "SIGALRM"):
                # the end of a process may wait for an exchange that no other rank will join
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(PATIENCE)


def caused_elsewhere(error: BaseException) -> bool:
    """Has this process failed only because another one did?"""
    said = str(error).lower()
    gone = isinstance(error, RuntimeError) and any(text in said for text in PEER_GONE)
    return gone or isinstance(error, dist.DistBackendError | RefusedElsewhereError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _record(error: BaseException) -> None:
    try:
        raise error
    except BaseException as again:  # whose traceback it writes
        get_error_handler().record_exception(again)


def _wait_for_the_launcher() -> None:
    """Torch's launcher ends all ranks when it sees one that has failed; the first it sees should be the cause."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stderr.flush()
        time.sleep(PATIENCE)
