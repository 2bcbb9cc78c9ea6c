"""Attention of one new token a row that reads each key once, whatever the number of queries that share it.

transformers 5.17 repeats keys and values for every query head where there is a mask, which for a long static cache is
several times the reading that a step needs. Where the library's own kernel runs, it attends: torch's reads all keys of
a head with one multiprocessor (`grouped_time`).
"""

# B batch, H query heads, G key/value heads, L query length, S columns of the cache, D head dim
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import FUSED
from hf_longctx.ops.masks import Full
from hf_longctx.ops.positions import Positions

NAME = "long_writer_sdpa"
_STEP: ContextVar[Positions | None] = ContextVar("_STEP", default=None)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """With the signature that transformers calls; more than one token goes to its own function."""
    B, H, L, D = query.shape
    if L != 1 or attention_mask is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found
    positions = _STEP.get()
    if positions is None or positions.k_pos_BS.shape != (B, key.shape[2]):
        positions = positions_of(attention_mask)
    branch = Branch(query, key, value, positions, Full())
    if has_kernel(branch):
        return attend([branch], scale=D**-0.5 if kwargs.get("scaling") is None else kwargs["scaling"]), None
    grouped = query.view(B, key.shape[1], -1, D)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(B, 1, H, D), None


def positions_of(mask_B1LS: Tensor) -> Positions:
    """What a mask of one query says; -1: a column without a token."""
    mask_BS = mask_B1LS[:, 0, 0]
    k_pos_BS = (mask_BS if mask_BS.dtype == torch.bool else mask_BS == 0).long() - 1
    return Positions(k_pos_BS.new_zeros(len(mask_BS), 1), k_pos_BS)


@contextmanager
def one_token(positions: Positions) -> Iterator[None]:
    """Inside, every layer reads one token a row, and `positions` replace its mask where the library's kernel runs."""
    before = _STEP.set(positions)
    try:
        yield
    finally:
        _STEP.reset(before)


def has_kernel(branch: Branch) -> bool:
    """Does the library have a kernel for it? What it does without one waits for the device, and cannot be recorded."""
    return any(kernel.unsupported_reason([branch]) is None for kernel in FUSED)


@contextmanager
def attending_grouped(model: Any) -> Iterator[None]:
    """Inside, a model that attends by torch's scaled_dot_product_attention does so by `attention`.

    Its masks are given to it whole: transformers makes none for a name that it does not know.

    Raises:
        ValueError: It attends by something that takes no mask of keys.
    """
    own = model.config._attn_implementation
    if own not in ("sdpa", "eager"):
        raise ValueError(
            f"{type(model).__name__} attends by {own}: expected sdpa or eager, without a method on the model. Load it "
            f"with attn_implementation='sdpa', or let GRPO generate otherwise (grpo: generation: plain)."
        )
    if own == "eager":
        yield
        return
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
        del ALL_ATTENTION_FUNCTIONS[NAME]
