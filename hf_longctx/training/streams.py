"""Streams of data for processes that share a batch: each of them reads them itself."""

from __future__ import annotations

import dataclasses
from typing import Any


def read_by_each(accelerator: Any) -> None:
    """Let `accelerator` leave its dispatch of batches off, which an `IterableDataset` has by default.

    There the first process reads as many batches as there are processes and hands each another one, whoever shares
    them; without it, all processes of a group read the same rows, and other groups others.
    """
    stock = accelerator.prepare_data_loader

    def prepare_data_loader(*args: Any, **kwargs: Any) -> Any:
        config = accelerator.dataloader_config
        if config.dispatch_batches:
            raise ValueError(
                "dispatch_batches=True: the first process would hand every process another batch, and those of a "
                "group share one. Leave it out of accelerator_config (or DataLoaderConfiguration): each process then "
                "reads the data itself, in the same order."
            )
        accelerator.dataloader_config = dataclasses.replace(config, dispatch_batches=False)
        return stock(*args, **kwargs)

    accelerator.prepare_data_loader = prepare_data_loader
