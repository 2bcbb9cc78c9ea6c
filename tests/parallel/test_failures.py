"""A rank that is killed, out of memory or refuses its batch: all end, the message names it, nothing is saved half."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from hf_longctx.parallel.model.agreement import RefusedElsewhereError
from hf_longctx.parallel.model.backend import check_backend
from hf_longctx.training import checkpoints, failures
from tests.children import python_path

from .pool import Pool

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.dist])])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("kill", r"Signal 9 \(SIGKILL\) received"),
        ("memory", r"OutOfMemoryError: CUDA out of memory"),
        ("refuse", r"ValueError: .*attention_dropout=0.5"),
    ],
)
def test_a_rank_fails(how: str, expected: str, device: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "tests/parallel/failing.py"), how, str(tmp_path), device],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
        check=False,
    )
    text = done.stderr
    assert done.returncode != 0
    failed = re.search(r"fails at ([\d.]+)", text)
    assert failed, text
    assert time.time() - float(failed[1]) < 60
    _, cause = text.split("Root Cause")
    assert re.search(r"rank +: 1 ", cause), text
    assert re.search(expected, cause), text
    if device == "cpu":  # with NCCL it waits until the launcher ends it
        assert re.search("rank 0 of 2 stops since another rank has ended", text), text
    if how != "kill":
        assert re.search(f"rank 1 of 2 failed: {expected}", text), text
    if how == "memory":
        assert "rank 1 of 2 is out of memory. Use more ranks" in text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.last_whole(tmp_path) == str(tmp_path / "checkpoint-1")
    assert load_file(tmp_path / "checkpoint-1/model.safetensors")


def test_a_checkpoint_that_was_interrupted_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step, state in ((2, '{"global_step": 2}'), (10, None), (11, '{"global_st'), (9, '{"global_step": 9}')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert checkpoints.last_whole(tmp_path) == str(tmp_path / "checkpoint-9")
    assert "checkpoint-11 was interrupted" in caplog.text
    assert "checkpoint-10 was interrupted" in caplog.text


def test_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a whole checkpoint-STEP folder in .*, and found none"):
        checkpoints.last_whole(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="and found checkpoint-3"):
        checkpoints.last_whole(tmp_path)


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:7581."), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 0."), True),
        (RefusedElsewhereError("rank 1 of the group has refused its batch."), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (ValueError("the connection closed by peer review"), False),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_whose_failure_it_is(error: Exception, elsewhere: bool) -> None:
    assert failures.caused_elsewhere(error) == elsewhere


def test_one_process_keeps_its_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", before := sys.excepthook)
    failures.name_failures(0, 1)
    assert sys.excepthook is before
    failures.name_failures(0, 2)
    failures.name_failures(0, 2)
    assert isinstance(sys.excepthook, failures.NamingHook)
    assert sys.excepthook.before is before


def without_nccl() -> list[str]:
    found = []
    for available in (True, False):
        with (
            mock.patch("torch.distributed.is_nccl_available", return_value=available),
            pytest.raises(RuntimeError) as caught,
        ):
            check_backend("cuda")
        found.append(str(caught.value))
    check_backend("cpu")
    return found


def test_cards_without_nccl(two: Pool) -> None:
    for gloo, no_nccl in two.run(without_nccl):
        assert "expected cuda:nccl. Call init_process_group" in gloo
        assert "expected cuda:nccl. This torch was built without NCCL" in no_nccl
