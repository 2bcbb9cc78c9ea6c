"""Conversions of checkpoint weights, which transformers looks up by the name of a model class."""

from __future__ import annotations

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping


def share_conversions(stock: str, name: str) -> None:
    """Let the class called `name` read the checkpoints of `stock`, where those need a conversion of their own.

    Conversions by model type, which most models have, are found without this.
    """
    conversions = get_checkpoint_conversion_mapping(stock)
    if conversions is not None and get_checkpoint_conversion_mapping(name) is None:
        register_checkpoint_conversion_mapping(name, conversions, overwrite=True)  # by another thread, meanwhile
