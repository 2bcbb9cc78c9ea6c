"""TRL's trainers with the mixin in front take the steps of one process: packing and preferences."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
import torch

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

EXACT = 2e-5
STEPS: dict[str, Any] = {
    **{"max_steps": 3, "logging_steps": 1, "gradient_accumulation_steps": 2, "use_cpu": True, "bf16": False},
    **{"report_to": [], "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3, "optim": "adamw_torch"},
}


class SequenceParallelSFTTrainer(SequenceParallelMixin, SFTTrainer):
    pass


class SequenceParallelDPOTrainer(SequenceParallelMixin, DPOTrainer):
    pass


def tokenizer() -> Any:
    vocabulary = {**{f"w{i}": i for i in range(95)}, "<pad>": 95, "<eos>": 96}
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
    args = SFTConfig(output_dir=folder, per_device_train_batch_size=1, packing=True, max_length=128, **STEPS, **more)
    cls = SequenceParallelSFTTrainer if shared else SFTTrainer
    return cls(model=make("llama"), args=args, train_dataset=data, processing_class=tokenizer())


def dpo(shared: bool, folder: str, more: dict[str, Any]) -> Any:
    data = texts(20, prompt=lambda i: 5 + i, chosen=lambda i: 3 + (7 * i) % 29, rejected=lambda i: 3 + (5 * i) % 31)
    args = DPOConfig(output_dir=folder, per_device_train_batch_size=2, **STEPS, **more)
    cls = SequenceParallelDPOTrainer if shared else DPOTrainer
    return cls(
        model=make("llama"), ref_model=make("llama"), args=args, train_dataset=data, processing_class=tokenizer()
    )


METRICS = ("loss", "grad_norm", "num_tokens", "mean_token_accuracy", "entropy", "rewards/margins", "rewards/accuracies")


def steps(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return [{name: log[name] for name in METRICS if name in log} for log in logs]


def on_a_rank(what: str) -> list[dict[str, float]]:
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=2))
        return steps({"sft": sft, "dpo": dpo}[what](True, folder, {"parallelism_config": config}))


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


@pytest.mark.parametrize("what", ["sft", "dpo"])
def test_steps(two: Pool, what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        right = steps({"sft": sft, "dpo": dpo}[what](False, folder, {}))
    assert len(right) == 3
    for answers in two.run(on_a_rank, what):
        for step, expected in zip(answers, right, strict=True):
            assert step == pytest.approx(expected, rel=EXACT, abs=1e-5)
