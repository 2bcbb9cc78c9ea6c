"""What the processes of a group exchange tensors with."""

from __future__ import annotations

import torch.distributed as dist


def check_backend(device: str) -> None:
    """RuntimeError for processes with NVIDIA cards that would not exchange their tensors by NCCL.

    Args:
        device: The type of device of the model.
    """
    config = dist.get_backend_config()
    if device != "cuda" or "cuda:nccl" in config:
        return
    why = (
        "This torch was built without NCCL: install one for CUDA on Linux"
        if not dist.is_nccl_available()
        else ('Call init_process_group("nccl"), or without a backend')
    )
    raise RuntimeError(f"the processes have {config}, and the model is on cards: expected cuda:nccl. {why}.")
