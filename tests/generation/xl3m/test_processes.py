"""Two processes share the segments of a text and return the same as one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from hf_longctx.generation.xl3m import XL3M, scoring
from tests.tiny import text, tiny

SMALL = XL3M(segment=16, overlap=4, key_context=40)


def ask(accelerator: Any, **more: Any) -> Any:
    scoring.TOKENS["cpu"] = 4 * 22  # several batches
    model = tiny(max_position_embeddings=96)
    return model.generate(
        text(1, 300 if more.pop("same", True) else 300 + accelerator.process_index), custom_generate=SMALL, question=6,
        max_new_tokens=4, do_sample=False, return_segments=True, accelerator=accelerator, **more,
    )  # fmt: skip


def work(rank: int, folder: str, port: int) -> None:
    # what `accelerate launch` sets
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1"
    )
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    from accelerate import PartialState

    torch.set_num_threads(1)
    state = PartialState(cpu=True, backend="gloo")
    read: list[int] = []
    output, (found,) = ask(state, read_progress=read.append, scores_file=f"{folder}/scores")
    try:
        ask(state, same=False)
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.save((state.num_processes, output, found, len(read), refused), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_return_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    before = dict(scoring.TOKENS)
    try:
        output, (wanted,) = ask(None)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.start_processes(work, args=(str(tmp_path), port), nprocs=2, start_method="spawn")
    finally:
        scoring.TOKENS.update(before)
    for rank in (0, 1):
        processes, ours, found, batches, refused = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert processes == 2
        assert batches == 4 - rank  # 25 segments are 7 batches
        assert torch.equal(ours, output)
        assert found.kept == wanted.kept
        assert torch.equal(found.scores["gain"], wanted.scores["gain"])
        assert "called with different texts" in refused
        assert (tmp_path / f"scores.{rank}-of-2").is_file()


def test_one_process_with_accelerate_is_one_process() -> None:
    pytest.importorskip("accelerate")
    from accelerate import PartialState

    output, (wanted,) = ask(None)
    ours, (found,) = ask(PartialState(cpu=True))
    assert torch.equal(ours, output)
    assert found.kept == wanted.kept
