"""Turning a model's checkpointing on: its name changed after transformers 5.17, and the old one goes with version 6."""

from __future__ import annotations

from typing import Any


def enable_checkpointing(model: Any, kwargs: dict[str, Any], **more: Any) -> None:
    """Let a model of transformers compute its layers again in backward.

    Args:
        model: Of transformers.
        kwargs: Of `torch.utils.checkpoint.checkpoint`: {"use_reentrant": False}.
        more: Of transformers: `offload`, `every_n_layers`.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(kwargs, **more)
