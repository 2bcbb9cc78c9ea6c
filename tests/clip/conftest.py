"""What two processes of one training see, run once for all tests that ask."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.long_clip.smoke import write_model, write_pairs


def _process(rank: int, folder: str) -> None:
    from tests.clip import two

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        ACCELERATE_USE_CPU="true",
        MASTER_PORT=Path(folder, "port").read_text(encoding="utf-8"),
    )
    torch.save({"loss": two.losses(), "training": two.training(Path(folder))}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def scene_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip`, a model of 77 tokens, and `pairs`, forty scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_model(folder / "clip")
    write_pairs(folder / "pairs", 40)
    return folder


@pytest.fixture(scope="session")
def two_processes(scene_files: Path) -> list[dict[str, Any]]:
    """What each of two processes saw (`tests/clip/two.py`)."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (scene_files / "port").write_text(str(free.getsockname()[1]), encoding="utf-8")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_process, args=(rank, str(scene_files))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(scene_files / f"{rank}.pt") for rank in range(2)]
