"""TRL's trainers with the mixin in front take the steps of one process: packing and preferences."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelMixin

from .models import make
from .pool import Pool
from .test_guide import blocks
from .test_trainer import launched

EXACT = 1e-5
PAD = 95
STEPS: dict[str, Any] = {
    **{"max_steps": 3, "logging_steps": 1, "use_cpu": True, "bf16": False},
    **{"report_to": [], "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3, "optim": "adamw_torch"},
}


class SequenceParallelSFTTrainer(SequenceParallelMixin, SFTTrainer):
    pass


class SequenceParallelDPOTrainer(SequenceParallelMixin, DPOTrainer):
    pass


def tokenizer() -> Any:
    vocabulary = {**{f"w{i}": i for i in range(95)}, "<pad>": PAD, "<eos>": 96}
    words = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def texts(count: int, **lengths: Any) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def words(n: int) -> str:
        return " " + " ".join(f"w{int(i)}" for i in torch.randint(3, 90, (n,), generator=generator))

    return Dataset.from_dict({name: [words(length(i)) for i in range(count)] for name, length in lengths.items()})


def sft(shared: bool, folder: str, more: dict[str, Any]) -> Any:
    data = texts(40, prompt=lambda i: 5 + i, completion=lambda i: 3 + (7 * i) % 29)
    few = texts(9, prompt=lambda i: 30 + i, completion=lambda i: 3 + (7 * i) % 29)
    args = SFTConfig(output_dir=folder, packing=True, max_length=128, **STEPS, **more)
    cls = SequenceParallelSFTTrainer if shared else SFTTrainer
    return cls(model=make("llama"), args=args, train_dataset=data, eval_dataset=few, processing_class=tokenizer())


def dpo(shared: bool, folder: str, more: dict[str, Any]) -> Any:
    lengths: dict[str, Any] = {"chosen": lambda i: 3 + (7 * i) % 29, "rejected": lambda i: 3 + (5 * i) % 31}
    data, few = texts(20, prompt=lambda i: 5 + i, **lengths), texts(7, prompt=lambda i: 9 + i, **lengths)
    args = DPOConfig(output_dir=folder, **STEPS, **more)
    cls = SequenceParallelDPOTrainer if shared else DPOTrainer
    models: dict[str, Any] = {"model": make("llama"), "ref_model": make("llama")}
    return cls(**models, args=args, train_dataset=data, eval_dataset=few, processing_class=tokenizer())


MAKE = {"sft": sft, "dpo": dpo}
METRICS = ("loss", "grad_norm", "num_tokens", "mean_token_accuracy", "entropy", "rewards/margins", "rewards/accuracies")


def steps(trainer: Any) -> list[dict[str, float]]:
    """The metrics of three steps."""
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return [{name: log[name] for name in METRICS if name in log} for log in logs]


def found_by(trainer: Any) -> dict[str, Any]:
    """The metrics of three steps and of an evaluation, and the rows that are predicted."""
    taken = steps(trainer)
    evaluated = trainer.evaluate()
    rows = trainer.predict(trainer.eval_dataset)
    return {
        "steps": taken,
        "evaluated": {name: evaluated[f"eval_{name}"] for name in METRICS if f"eval_{name}" in evaluated},
        "rows": rows.predictions,
        "labels": rows.label_ids,
    }


def on_a_rank(what: str, degree: int) -> dict[str, Any]:
    """In groups of `degree` processes; degree 1: stock, each process by itself."""
    with launched() as folder:
        more: dict[str, Any] = sizes(what, dist.get_world_size() // degree)
        if degree > 1:
            more["parallelism_config"] = SequenceParallelConfig(SequenceParallel(degree=degree))
        return found_by(MAKE[what](degree > 1, folder, more))


def sizes(what: str, groups: int) -> dict[str, int]:
    """Two packs or four pairs a step, whatever the number of groups."""
    rows = {"sft": 1, "dpo": 2}[what]
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 2 // groups,
        "per_device_eval_batch_size": rows,
    }


def of_the_guide() -> None:
    with launched() as folder:
        names: dict[str, Any] = {
            "SequenceParallelConfig": SequenceParallelConfig,
            "SequenceParallelMixin": SequenceParallelMixin,
        }
        os.chdir(folder)
        # TRL asks for bfloat16, which transformers takes for a GPU
        exec(blocks()[1].replace("packing=True", "packing=True, use_cpu=True, bf16=False"), names)
        args = names["args"]
        args.max_length, args.max_steps, args.report_to = 128, 1, []
        data = texts(40, prompt=lambda i: 5 + i, completion=lambda i: 3 + i % 29)
        names["SequenceParallelSFTTrainer"](
            model=make("llama"), args=args, train_dataset=data, processing_class=tokenizer()
        ).train()
        os.chdir("/")


def test_lines_of_the_guide(two: Pool) -> None:
    two.run(of_the_guide)


def one_process(what: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return found_by(MAKE[what](False, folder, sizes(what, 1)))


def compare(right: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    assert len(right["steps"]) == 3
    for found in answers:
        for step, expected in zip(found["steps"], right["steps"], strict=True):
            assert step == pytest.approx(expected, rel=EXACT, abs=1e-5)
        assert found["evaluated"] == pytest.approx(right["evaluated"], rel=EXACT, abs=1e-5)
        np.testing.assert_array_equal(found["labels"], right["labels"])
        real = right["labels"] != PAD  # a padded token is answered by zeros
        assert found["rows"].shape == right["rows"].shape
        np.testing.assert_allclose(found["rows"][real], right["rows"][real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("what", MAKE)
def test_two_ranks_are_one_process(two: Pool, what: str) -> None:
    compare(one_process(what), two.run(on_a_rank, what, 2))


@pytest.mark.parametrize("what", MAKE)
def test_two_groups_of_two_are_two_processes(two: Pool, four: Pool, what: str) -> None:
    """TRL takes the mean of its metrics over processes: two stock ones are the measure, and one for the steps."""
    found = four.run(on_a_rank, what, 2)
    compare(two.run(on_a_rank, what, 1)[0], found)
    for step, alone in zip(found[0]["steps"], one_process(what)["steps"], strict=True):
        for name in ("loss", "grad_norm"):
            assert step[name] == pytest.approx(alone[name], rel=EXACT)
