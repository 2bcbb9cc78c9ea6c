"""The lines of docs/training.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_longctx import TrainingMemory, applied
from tests.parallel.models import batch, make
from tests.parallel.test_trainer import CHECKPOINTING, arguments, collate

from .test_trainer import Lines

GUIDE = Path(__file__).parents[3] / "docs" / "training.md"


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blocks, on a CPU, under the name that checkpointing has here."""
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block.replace("gradient_checkpointing", CHECKPOINTING) for block in blocks]


def names() -> dict[str, Any]:
    given = batch([[60]])
    found: dict[str, Any] = {"model": make("llama"), "data": Lines(), "collator": collate, "Trainer": Trainer}
    return found | {"TrainingMemory": TrainingMemory, "ids": given["input_ids"], "labels": given["labels"]}


def test_a_stock_trainer(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # pinned memory, which transformers asks for, is there with CUDA only
    unpinned = lambda **_: torch.autograd.graph.save_on_cpu(pin_memory=False)  # noqa: E731
    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", unpinned)
    given = names()
    quiet = "use_cpu=True, max_steps=2, report_to=[], remove_unused_columns=False, per_device_train_batch_size=1"
    exec(lines[0].replace('"out",', f'"out", {quiet},'), given)
    assert isinstance(given["args"], TrainingArguments)
    assert [patch.method for patch in applied(given["model"])] == [TrainingMemory(remat="attention", fused_norms=True)]


def test_log_probs(lines: list[str]) -> None:
    given = names()
    exec(lines[1], given)
    given["loss"].backward()
    assert given["model"].lm_head.weight.grad is not None


def test_mixins(lines: list[str], tmp_path: Path) -> None:
    given = names() | {"args": arguments(str(tmp_path))}
    exec(lines[2], given)
    assert [patch.method for patch in applied(given["model"])] == [TrainingMemory()]
    assert len(lines) == 3
