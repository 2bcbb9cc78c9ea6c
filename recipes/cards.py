"""The GPUs of this machine: those for commands that give each of their processes its own, and the one of a training."""

from __future__ import annotations

import gc
import logging
import os
from functools import cache
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALONE = "It trains in one process; python -m recipes.jobs runs several commands at once, one on each GPU."
SHARED = "accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml --num_processes N uses N of them."
logger = logging.getLogger("hf_longctx")


def visible() -> list[str]:
    """The GPUs that this process sees, as a process of its own is told of each; none of them is held."""
    given = os.environ.get(VISIBLE)
    if given:
        return given.split(",")
    import torch  # seconds, which a command that is told its GPUs does not need

    return [str(number) for number in range(torch.cuda.device_count())]


def free() -> None:
    """Give back the memory of models that are gone: trainers hold theirs in circles, which Python keeps for a while."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_card(args: Any, more: str = ALONE) -> Any:
    """TrainingArguments by which a process that no launcher has started trains on the first GPU that it sees.

    Trainer would wrap the model in torch.nn.DataParallel where it sees several, which TRL's trainers and ours refuse.
    `n_gpu` is what all of them go by: Trainer itself sets it so for a model that is on several devices, from
    transformers 5.17 to 5.24, and TRL 1.16 asks for it after that. CUDA_VISIBLE_DEVICES would come too late here: a
    package that asks for CUDA when it is imported (bitsandbytes) has made the driver read it. `gpu_ids` in a file for
    accelerate would take the place of a CUDA_VISIBLE_DEVICES that the user has set.

    Args:
        args: Any; on several processes, or without GPUs, they stay as they are.
        more: What the log says of how to use more GPUs.
    """
    if args.n_gpu > 1:
        say_one_card(args.n_gpu, more)
        args._n_gpu = 1
    return args


@cache
def say_one_card(seen: int, more: str = ALONE) -> None:
    """Say once which of several GPUs a process uses."""
    shown = f" ({VISIBLE}={os.environ[VISIBLE]})" if os.environ.get(VISIBLE) else ""
    logger.warning(
        "This one process sees %d GPUs%s and trains on the first, GPU %s. %s", seen, shown, visible()[0], more
    )
