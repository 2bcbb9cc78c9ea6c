"""Processes that stay alive: ranks that run one function after the other, so that torch is imported once."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Pool:
    """Ranks of one group. `run` calls a module's function on every one of them and returns what each returned."""

    def __init__(self, size: int, folder: Path, backend: str = "gloo") -> None:
        self.size, self.folder, self.backend = size, folder, backend
        self.started = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(self.size)]
        self.ends = [own for own, _ in pairs]
        self.started += 1
        self.written = [self.folder / f"rank{rank}-{self.started}.txt" for rank in range(self.size)]
        store = f"file://{self.folder}/store{self.started}"
        self.processes = [
            context.Process(
                target=_serve, args=(rank, self.size, store, theirs, self.backend, self.written[rank]), daemon=True
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()  # so that the end of a process is seen

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        answers = []
        try:
            for end in self.ends:
                end.send((function, args))
            for rank, end in enumerate(self.ends):
                assert end.poll(180), f"rank {rank} does not answer: it waits for an exchange that another one left out"
                answers.append(end.recv())
        except (EOFError, OSError, AssertionError) as error:
            said = self._ends()
            self.close()
            self._start()  # what comes next has ranks again
            raise AssertionError(f"{function.__name__}{args}: {error!r}\n{said}") from error
        failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
        assert not failed, "\n".join(failed)
        return [answer for _, answer in answers]

    def _ends(self) -> str:
        """How each process ended, or that it runs, and the last that it wrote."""
        said = []
        for rank, (process, written) in enumerate(zip(self.processes, self.written, strict=True)):
            process.join(2)
            text = written.read_text(errors="replace")[-4000:] if written.exists() else ""
            said.append(f"rank {rank}, exit code {process.exitcode} (None: it runs):\n{text}")
        return "\n".join(said)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, store: str, end: Connection, backend: str, written: Path) -> None:
    file = written.open("w")
    os.dup2(file.fileno(), 2)
    faulthandler.enable()

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
