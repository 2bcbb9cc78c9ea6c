"""Packed documents stay apart with a cache that is empty, and under a mask of ones (entries 0002 and 0003)."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def separated(stock: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of `masking_utils._preprocess_mask_arguments`.

    Only where queries and keys are the same tokens, and no token is masked: positions of padding look like documents.
    Under torch.compile a mask is left as it is, since whether it is all ones depends on its values.
    """
    result = stock(*args, **kwargs)
    early, mask, packed, length, keys, offset, keys_offset = result
    given = inspect.signature(stock).bind(*args, **kwargs).arguments
    positions = given.get("position_ids")
    if early or packed is not None or positions is None or positions.ndim != 2 or length != keys:
        return result
    if not isinstance(offset, int) or offset or (mask is not None and _masks(mask)):
        return result
    from transformers.masking_utils import find_packed_sequence_indices

    batch = given["inputs_embeds"].shape[0]
    documents = find_packed_sequence_indices(positions.expand(batch, -1))
    return early, mask, documents, length, keys, offset, keys_offset


def _masks(mask: Any) -> bool:
    if not isinstance(mask, torch.Tensor) or torch.compiler.is_compiling():
        return True
    return not bool(mask.all())
