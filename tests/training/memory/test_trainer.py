"""Stock trainers with the ladder take the steps they take without: losses, gradient norms, metrics, predictions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_longctx import (
    SequenceParallel,
    SequenceParallelConfig,
    SequenceParallelMixin,
    TrainingMemory,
    TrainingMemoryMixin,
    applied,
)
from tests.parallel.models import make
from tests.parallel.pool import Pool
from tests.parallel.test_trainer import CHECKPOINTING, Packs, arguments, collate, compare, launched, one_process, run

from .rungs import ALL, EXACT


class FarTrainer(TrainingMemoryMixin, Trainer):
    pass


class ParallelFarTrainer(SequenceParallelMixin, TrainingMemoryMixin, Trainer):
    pass


class Lines(Packs):
    """One document a row: stock attention of one process does not know packs with a mask."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(i)
        return {name: row[name] for name in ("input_ids", "labels")}


def steps(cls: Any, folder: Path, model: Any, **more: Any) -> tuple[list[Any], float, Any]:
    args = arguments(str(folder), gradient_accumulation_steps=2, **{CHECKPOINTING: True})
    data: dict[str, Any] = {"train_dataset": Lines(), "eval_dataset": Lines(), "data_collator": collate}
    trainer = cls(model=model, args=args, **data, **more)
    trainer.train()
    logs = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
    return logs, trainer.evaluate()["eval_loss"], trainer


def test_a_stock_trainer_with_a_model_on_the_ladder(tmp_path: Path) -> None:
    logs, loss, _ = steps(Trainer, tmp_path, make("llama"))
    model = make("llama")
    patch = ALL.apply(model)
    found, found_loss, _ = steps(Trainer, tmp_path, model)
    assert found == [pytest.approx(log, rel=EXACT) for log in logs]
    assert found_loss == pytest.approx(loss, rel=EXACT)
    patch.undo()


def test_the_mixin_predicts_logits(tmp_path: Path) -> None:
    logs, loss, stock = steps(Trainer, tmp_path, make("llama"))
    found, found_loss, trainer = steps(FarTrainer, tmp_path, make("llama"), memory=ALL)
    assert found == [pytest.approx(log, rel=EXACT) for log in logs]
    assert found_loss == pytest.approx(loss, rel=EXACT)
    right, predicted = (t.predict(Lines()).predictions for t in (stock, trainer))
    torch.testing.assert_close(torch.from_numpy(predicted), torch.from_numpy(right), rtol=1e-3, atol=1e-3)


def test_the_mixin_by_itself(tmp_path: Path) -> None:
    model = make("llama")
    FarTrainer(model=model, args=arguments(str(tmp_path)), train_dataset=Lines(), data_collator=collate)
    assert [patch.method for patch in applied(model)] == [TrainingMemory()]


def test_settings_of_another_kind_are_refused(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"memory": "attention", "preflight": "no"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}='{value}': expected "):
            FarTrainer(model=make("llama"), args=arguments(str(tmp_path)), **{name: value})


def in_parallel() -> dict[str, Any]:
    import hf_longctx.training.memory.pending as pending

    pending.CHUNK = 5
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=2, cut="all"))
        args = arguments(folder, gradient_accumulation_steps=2, **{CHECKPOINTING: True}, parallelism_config=config)

        def trainer(**more: Any) -> Any:
            return ParallelFarTrainer(memory=ALL, **more)

        return run(trainer, args, make("llama"))


def test_with_sequence_parallelism(two: Pool) -> None:
    compare(one_process(2, True), two.run(in_parallel))


def test_trl(tmp_path: Path) -> None:
    """TRL's fused head goes on serving its trainer, whoever comes first; MLPs are tiled, and attention is kept."""
    pytest.importorskip("trl")
    from trl import SFTTrainer

    from tests.parallel import test_trl

    class FarSFTTrainer(TrainingMemoryMixin, SFTTrainer):
        pass

    right = test_trl.steps(test_trl.sft(False, str(tmp_path), test_trl.sizes("sft", 1)))
    for before in (True, False):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            if before:
                model = make("llama")
                ALL.apply(model)
                patch.setattr(test_trl, "make", lambda _, model=model: model)
            else:
                patch.setattr(test_trl, "SFTTrainer", lambda **more: FarSFTTrainer(memory=ALL, **more))
            found = test_trl.steps(test_trl.sft(False, folder, test_trl.sizes("sft", 1)))
        assert found == [pytest.approx(step, rel=2e-5, abs=1e-5) for step in right]
