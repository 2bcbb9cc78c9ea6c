"""A step without any target, on any process, changes nothing: neither weights nor the state of the optimizer."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger("hf_longctx")


class SkipEmptySteps(TrainerCallback):
    """Takes the gradients away before the optimizer's step, which then passes over all parameters.

    Attributes:
        empty: Whether the step has no targets on any process: all of them know the same.
        skipped: How many steps had none.
    """

    def __init__(self) -> None:
        self.empty = False
        self.skipped = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after the gradients were clipped."""
        if not self.empty:
            return
        # without this, momentum and weight decay would move the weights
        kwargs["model"].zero_grad(set_to_none=True)
        self.skipped += 1
        if state.is_world_process_zero:
            logger.warning("step %d has no target tokens on any process: it is skipped", state.global_step + 1)
