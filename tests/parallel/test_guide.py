"""The lines of docs/parallel.md run as they stand, on two ranks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import hf_longctx

from .models import PACKED, batch, make
from .pool import Pool
from .test_trainer import Packs, collate, launched

GUIDE = Path(__file__).parents[2] / "docs" / "parallel.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def with_trainer() -> list[str]:
    with launched() as folder:
        os.chdir(folder)
        model = make("llama")
        exec(blocks()[0], {"model": model, "data": Packs(), "collator": collate})
        os.chdir("/")
        return [repr(patch.method) for patch in hf_longctx.applied(model)]


def test_trainer(two: Pool) -> None:
    for methods in two.run(with_trainer):
        assert methods == [repr(hf_longctx.SequenceParallel(degree=2))]


def in_a_plain_loop() -> float:
    given = batch([PACKED])
    names: dict[str, Any] = {"torch": torch, "SequenceParallel": hf_longctx.SequenceParallel, "model": make("llama")}
    names |= {"ids": given["input_ids"], "positions": given["position_ids"], "labels": given["labels"]}
    with mock.patch("torch.distributed.init_process_group"):  # there is one
        exec(blocks()[2], names)
    names["patch"].undo()
    assert names["model"].lm_head.weight.grad is not None
    return float(names["loss"].detach())


def test_plain_loop(two: Pool) -> None:
    right = make("llama")(**batch([PACKED]), use_cache=False).loss.item()
    assert two.run(in_a_plain_loop) == [pytest.approx(right, rel=1e-5)] * 2
