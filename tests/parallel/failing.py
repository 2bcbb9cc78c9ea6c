"""A training of two ranks, in which rank 1 fails in the second step: torchrun failing.py HOW FOLDER DEVICE."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer
from tests.parallel.models import make
from tests.parallel.test_trainer import Packs, arguments, collate

HOW, FOLDER, DEVICE = sys.argv[1:]


class Failing(TrainerCallback):
    """Rank 1 fails; the others wait for it in the middle of a layer."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and dist.get_rank() == 1:
            print(f"fails at {time.time()}", file=sys.stderr, flush=True)
            if HOW == "refuse":
                kwargs["model"].config.attention_dropout = 0.5
                for layer in kwargs["model"].model.layers:
                    layer.self_attn.attention_dropout = 0.5
            else:
                kwargs["model"].model.layers[1].mlp.register_forward_pre_hook(fail)


def fail(*_: Any) -> None:
    if HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if DEVICE == "cuda":
        torch.empty(2**40, dtype=torch.uint8, device=DEVICE)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 1 has a total of 79 GiB")


if DEVICE == "cpu":
    os.environ["ACCELERATE_USE_CPU"] = "true"
SequenceParallelTrainer(
    model=make("llama"),
    args=arguments(
        FOLDER,
        use_cpu=DEVICE == "cpu",
        save_strategy="steps",
        save_steps=1,
        parallelism_config=SequenceParallelConfig(SequenceParallel(degree=2, cut="all")),
    ),
    train_dataset=Packs(),
    data_collator=collate,
    callbacks=[Failing()],
).train()
