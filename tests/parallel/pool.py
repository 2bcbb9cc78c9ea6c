"""Processes that stay alive: ranks that run one function after the other, so that torch is imported once."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Pool:
    """Ranks of one group. `run` calls a module's function on every one of them and returns what each returned."""

    def __init__(self, size: int, folder: Path, backend: str = "gloo") -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size)]
        self.ends = [own for own, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, f"file://{folder}/store", theirs, backend), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for end in self.ends:
            end.send((function, args))
        answers = []
        for rank, end in enumerate(self.ends):
            assert end.poll(180), f"rank {rank} does not answer: it waits for an exchange that another one left out"
            answers.append(end.recv())
        failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
        assert not failed, "\n".join(failed)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, store: str, end: Connection, backend: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store, timeout=timedelta(seconds=60), rank=rank, world_size=size)
    while True:
        function, args = end.recv()
        try:
            end.send((True, function(*args)))
        except BaseException:
            end.send((False, traceback.format_exc()))
