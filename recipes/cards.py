"""The GPUs of this machine, for commands that give each of their processes its own."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that this process sees, as a process of its own is told of each; none of them is held."""
    given = os.environ.get(VISIBLE)
    if given:
        return given.split(",")
    import torch  # seconds, which a command that is told its GPUs does not need

    return [str(number) for number in range(torch.cuda.device_count())]
