"""What a Trainer gathers of all processes, once for each group that had the same batch."""

from __future__ import annotations

from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor


def gather_once(accelerator: Any, degree: int) -> None:
    """Let `accelerator.gather_for_metrics` give the rows of one process of each group of `degree` successive ones."""
    stock = accelerator.gather_for_metrics

    def one_of_each(gathered: Tensor) -> Tensor:
        by_process = gathered.unflatten(0, (accelerator.num_processes, -1))
        return by_process[::degree].flatten(0, 1)

    def gather_for_metrics(input_data: Any, use_gather_object: bool = False) -> Any:
        gather = accelerator.gather
        # it gathers, then drops the rows that fill up the last batch
        accelerator.gather = lambda data: recursively_apply(one_of_each, gather(data))
        try:
            return stock(input_data, use_gather_object)
        finally:
            del accelerator.gather

    accelerator.gather_for_metrics = gather_for_metrics
