"""Runs a part of the benchmark in as many processes as it needs, and reads what it measures line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recipes.cards import VISIBLE, visible

SAMPLE = "SAMPLE "
WORKER = "recipes.benchmarks.sequence_parallel.worker"
LOCAL = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
GRACE = 20  # seconds between asking processes to end and ending them


class Launcher:
    """Starts processes by torchrun, until the time is over.

    Args:
        tiny: Tiny sizes on the CPU.
        seconds: From now on; then the processes are ended, and what they measured so far counts. None: no limit.
    """

    def __init__(self, tiny: bool, seconds: float | None = None) -> None:
        self.tiny = tiny
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end

    def side_by_side(self, part: str, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All samples of single processes with these settings, as many at once as there are cards; no timings."""
        cards = [] if self.tiny else visible()
        found = []
        with ThreadPoolExecutor(max(len(cards), 1)) as pool:
            for start in range(0, len(each), max(len(cards), 1)):
                some = each[start : start + max(len(cards), 1)]
                at = cards[: len(some)] or [None]
                found += pool.map(lambda given, card: list(self.samples(part, 1, card, **given)), some, at)
        return [sample for samples in found for sample in samples]

    def samples(self, part: str, processes: int, card: str | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
        """What `work` of the module of this name yields on rank 0; `{"failed": reason}` last if it did not end well.

        Args:
            part: The module.
            processes: How many.
            card: The only GPU that they see; None: all.
            settings: What `work` is given.
        """
        if self.over:
            yield {"failed": "not measured: the time was over"}
            return
        torchrun = ["-m", "torch.distributed.run", *LOCAL, "--nproc_per_node", str(processes)]
        settings = {"tiny": self.tiny, **settings}
        command = [sys.executable, "-W", "ignore", *torchrun, "-m", WORKER, part, json.dumps(settings)]
        start = time.perf_counter()
        environment = os.environ if card is None else {**os.environ, VISIBLE: card}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            timer = self._timer(child)
            for line in child.stdout:
                if line.startswith(SAMPLE):
                    yield json.loads(line.removeprefix(SAMPLE))
                print(line[:400].rstrip(), flush=True)
            child.wait()
            timer.cancel()
        print(f"{part} on {processes} took {time.perf_counter() - start:.0f} s", flush=True)
        if child.returncode:
            late = "its time was over" if self.over else f"its processes ended with {child.returncode}"
            yield {"failed": f"not measured: {late}"}

    def _timer(self, child: subprocess.Popen[str]) -> threading.Timer:
        def stop() -> None:
            child.terminate()  # torchrun ends its workers
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()

        timer = threading.Timer(1e6 if self.end is None else self.end - time.monotonic(), stop)
        timer.daemon = True
        timer.start()
        return timer
