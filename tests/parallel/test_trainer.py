"""Stock trainers on groups of processes take the steps of one process: losses, gradient norms, metrics, rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from packaging.version import Version
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf_longctx import (
    SequenceParallel,
    SequenceParallelConfig,
    SequenceParallelMixin,
    SequenceParallelTrainer,
    TrainingMemoryMixin,
    applied,
)
from hf_longctx.patch import unwrap
from hf_longctx.training import LossWeightingTrainer

from .models import batch, lora, make
from .pool import Pool

PACKS = [[61, 3, 1, 40], [33, 33, 2], [101], [5, 70, 9, 13], [20, 81], [77, 4], [50, 50], [7, 90]]
EXACT = 1e-5
# renamed in transformers 5.23
CHECKPOINTING = next(
    f"{x}_checkpointing" for x in ("activation", "gradient") if hasattr(TrainingArguments, f"{x}_checkpointing")
)

SEVERAL_CAN_LOAD = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="stock Trainer of 5.17 cannot load on several CPU processes: it asks torch for cpu:0",
)


class TrainingMemoryTrainer(TrainingMemoryMixin, Trainer): ...


class Packs(torch.utils.data.Dataset):
    def __init__(self, size: int = len(PACKS)) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        given = batch([PACKS[i]])
        return {"position_ids": torch.arange(sum(PACKS[i])), **{name: x[0] for name, x in given.items()}}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of a batch one after the other, as padding-free collators give them."""
    return {name: torch.cat([row[name] for row in rows])[None] for name in rows[0]}


@contextmanager
def launched(cpu: bool = True) -> Iterator[str]:
    """What torchrun tells its processes; and a folder."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    names = {"RANK": dist.get_rank(), "LOCAL_RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size()}
    environment = {name: str(x) for name, x in names.items()}
    everywhere = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": str(cpu).lower()}
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with mock.patch.dict(os.environ, environment | everywhere), tempfile.TemporaryDirectory() as folder:
        yield folder
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def arguments(folder: str, **more: Any) -> TrainingArguments:
    steps = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    quiet: dict[str, Any] = {
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
    }
    settings: dict[str, Any] = {"learning_rate": 1e-3, "max_grad_norm": 1.0, "optim": "adamw_torch", "use_cpu": True}
    return TrainingArguments(output_dir=folder, **{**steps, **quiet, **settings, **more})


def trained_weight(model: Any) -> Tensor:
    """One that a LoRA has too."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and "layers.1.self_attn" in name]
    weight: Any = model.get_parameter(next(name for name in names if "k_proj" in name or "v_proj" in name))
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().cpu().clone()


def run(cls: Any, args: TrainingArguments, model: Any, evaluated_together: int = 1) -> dict[str, Any]:
    trainer = cls(model=model, args=args, train_dataset=Packs(), eval_dataset=Packs(), data_collator=collate)
    trainer.train()
    logs = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
    predicted = trainer.predict(Packs(7))  # the last batch of two groups is filled up
    trainer.args.per_device_eval_batch_size = evaluated_together
    return {
        "steps": torch.tensor(logs, dtype=torch.float64),
        "eval_loss": torch.tensor(trainer.evaluate()["eval_loss"]),
        "weight": trained_weight(model),
        "logits": torch.from_numpy(predicted.predictions),
        "labels": torch.from_numpy(predicted.label_ids),
    }


def checkpointing_of(kind: str) -> dict[str, Any]:
    """Settings of Trainer: none, "plain" or "reentrant"."""
    if not kind:
        return {}
    return {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": kind == "reentrant"}}


def one_process(accumulated: int, checkpointing: str, groups: int = 1, made: Any = make) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, gradient_accumulation_steps=accumulated, **checkpointing_of(checkpointing))
        return run(Trainer, args, made("llama"), groups)


def on_a_rank(accumulated: int, checkpointing: str, made: Any = make, **more: Any) -> dict[str, Any]:
    groups = dist.get_world_size() // 2
    with launched(cpu=more.get("use_cpu", True)) as folder:
        args = arguments(
            folder,
            gradient_accumulation_steps=accumulated // groups,
            **checkpointing_of(checkpointing),
            parallelism_config=SequenceParallelConfig(SequenceParallel(degree=2, cut="all")),
            **more,
        )
        model = made("llama")
        found = run(SequenceParallelTrainer, args, model)
        assert unwrap(model).config._attn_implementation == "hf_longctx_sequence_parallel"
        applied(model)[0].undo()
        return found


def adapted(name: str) -> Any:
    return lora(make(name))


@pytest.mark.parametrize("checkpointing", ["", "plain", "reentrant"])
def test_trainer_on_two_ranks(two: Pool, checkpointing: str) -> None:
    compare(one_process(2, checkpointing), two.run(on_a_rank, 2, checkpointing))


def test_an_adapter_in_trainer(two: Pool) -> None:
    compare(one_process(1, "plain", made=adapted), two.run(on_a_rank, 1, "plain", adapted))


def test_trainer_on_two_groups_of_two(four: Pool) -> None:
    compare(one_process(2, "plain", 2), four.run(on_a_rank, 2, "plain"))


def resumed() -> tuple[list[float], list[float]]:
    """Losses of four steps at a stretch, and of two and then two from the checkpoint, in the middle of an epoch."""
    with launched() as folder:
        # the folder of the first rank: all ranks load what it saves
        shared = [folder]
        dist.broadcast_object_list(shared)
        config = SequenceParallelConfig(SequenceParallel(degree=2))
        whole = four_steps(SequenceParallelTrainer, shared[0], None, parallelism_config=config)
        parts = four_steps(SequenceParallelTrainer, shared[0], f"{shared[0]}/checkpoint-2", parallelism_config=config)
        dist.barrier()
        return whole, parts


@SEVERAL_CAN_LOAD
def test_training_goes_on_in_the_middle_of_an_epoch(two: Pool) -> None:
    for whole, parts in two.run(resumed):
        assert len(whole) == 4
        assert parts == pytest.approx(whole, rel=1e-6)


def logged(
    cls: Any, folder: str, *names: str, data: Any = Packs, checkpoint: str | None = None, **more: Any
) -> list[float]:
    """What a trainer logs by these names in each step."""
    trainer = cls(model=make("llama"), args=arguments(folder, **more), train_dataset=data(), data_collator=collate)
    trainer.train(resume_from_checkpoint=checkpoint)
    return [log[name] for log in trainer.state.log_history if "grad_norm" in log for name in names]


def logged_on_a_rank(names: tuple[str, ...], more: dict[str, Any]) -> list[float]:
    """The same by two ranks that share every document."""
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=2, cut="all"))
        return logged(SequenceParallelTrainer, folder, *names, parallelism_config=config, **more)


def four_steps(cls: Any, folder: str, checkpoint: str | None, **more: Any) -> list[float]:
    """Losses of four steps, or of the last two from a checkpoint; the model is saved after two."""
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **more}
    return logged(cls, folder, "loss", checkpoint=checkpoint, **saved)


def four_steps_shared(folder: str, checkpoint: str | None) -> list[float]:
    with launched():
        config = SequenceParallelConfig(SequenceParallel(degree=dist.get_world_size()))
        found = four_steps(SequenceParallelTrainer, folder, checkpoint, parallelism_config=config)
        dist.barrier()
        return found


def test_one_process_goes_on_from_a_checkpoint_of_two_ranks(two: Pool, tmp_path: Path) -> None:
    right = four_steps(Trainer, str(tmp_path / "one"), None)
    two.run(four_steps_shared, str(tmp_path / "two"), None)
    found = four_steps(Trainer, str(tmp_path / "on"), str(tmp_path / "two" / "checkpoint-2"))
    assert found == pytest.approx(right, rel=EXACT)


@SEVERAL_CAN_LOAD
def test_two_ranks_and_four_go_on_from_a_checkpoint_of_one_process(two: Pool, four: Pool, tmp_path: Path) -> None:
    right = four_steps(Trainer, str(tmp_path / "one"), None)
    for pool in (two, four):
        folder = str(tmp_path / str(pool.size))
        for found in pool.run(four_steps_shared, folder, str(tmp_path / "one" / "checkpoint-2")):
            assert found == pytest.approx(right, rel=EXACT)


def test_mixed_precision(two: Pool, tmp_path: Path) -> None:
    right = logged(Trainer, str(tmp_path), "loss", bf16=True)
    for losses in two.run(logged_on_a_rank, ("loss",), {"bf16": True}):
        assert losses == pytest.approx(right, rel=2e-2)  # bf16 keeps 8 bits


def compare(right: dict[str, Tensor], found: list[dict[str, Tensor]]) -> None:
    for answers in found:
        for name in ("steps", "eval_loss", "weight"):
            torch.testing.assert_close(answers[name], right[name], rtol=EXACT, atol=1e-6)
        assert answers["labels"].shape == right["labels"].shape
        assert torch.equal(answers["labels"], right["labels"])
        real = right["logits"] != -100  # shorter packs are filled up
        torch.testing.assert_close(answers["logits"][real], right["logits"][real], rtol=1e-3, atol=1e-3)


def refused() -> dict[str, str]:
    found = {}
    config: dict[str, Any] = {"parallelism_config": SequenceParallelConfig(SequenceParallel(degree=2))}
    for name, more in {
        "no config": {},
        "smoothing": {**config, "label_smoothing_factor": 0.1},
        "objects": {**config, "eval_use_gather_object": True},
        "fsdp": {**config, "fsdp": True, "fsdp_config": {"version": 2}},
    }.items():
        with launched() as folder:
            try:
                SequenceParallelTrainer(model=make("llama"), args=arguments(folder, **more), train_dataset=Packs())
            except ValueError as error:
                found[name] = str(error)
    return found


def test_settings_of_trainer_that_cannot_work(two: Pool) -> None:
    for found in two.run(refused):
        assert "expected parallelism_config=SequenceParallelConfig(" in found["no config"]
        assert "Set SequenceParallel(gather_logits=True)" in found["smoothing"]
        assert "eval_use_gather_object=True" in found["objects"]
        assert "accelerate runs MULTI_CPU here, not FSDP2" in found["fsdp"]


def without_the_mixin() -> list[str]:
    """Trainers that are given the config only, and a plain loop that forgets the switch."""
    found = []
    for trainer in (Trainer, TrainingMemoryTrainer, LossWeightingTrainer):
        with launched() as folder:
            settings = arguments(folder, parallelism_config=SequenceParallelConfig(SequenceParallel(degree=2)))
            stock = trainer(model=make("llama"), args=settings, train_dataset=Packs(), data_collator=collate)
            with pytest.raises(ValueError, match="the model does not share it") as error:
                stock.train()
        found.append(str(error.value))
    with launched():
        accelerator = Accelerator(parallelism_config=SequenceParallelConfig())
        with pytest.raises(ValueError, match="the model does not share it") as error:
            accelerator.prepare(lora(make("llama")))
    return [*found, str(error.value)]


def test_a_model_that_does_not_share_its_batch_is_refused(two: Pool) -> None:
    for found in two.run(without_the_mixin):
        for message in found:
            assert message.startswith("LlamaForCausalLM: SequenceParallelConfig gives a group of processes one batch")
            assert "Put SequenceParallelMixin before the trainer, or apply config.switch" in message


def test_a_degree_that_does_not_fit_the_processes() -> None:
    with mock.patch.dict(os.environ, {"WORLD_SIZE": "3"}), pytest.raises(ValueError, match="degree=2: 3 processes"):
        SequenceParallelConfig(SequenceParallel(degree=2))


def test_the_mixin_comes_first() -> None:
    assert SequenceParallelTrainer.__mro__.index(SequenceParallelMixin) < SequenceParallelTrainer.__mro__.index(Trainer)
