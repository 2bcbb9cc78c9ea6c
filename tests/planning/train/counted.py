"""The memory of a training step, counted: every tensor that torch makes in it, of the real size, without memory."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig

from hf_longctx.ops.rms_norms import RMSNormForm
from hf_longctx.parallel.layout import Layout
from hf_longctx.parallel.op import attention
from hf_longctx.parallel.ranks import Ranks
from hf_longctx.upstream.checkpointing import enable_checkpointing
from recipes.far.counting import Counter

NAME = "counted"


def counted(
    config: PreTrainedConfig,
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    autocast: bool = False,
    checkpointing: bool = True,
    memory: Any = None,
    offload: bool = False,
) -> int:
    """Bytes at the peak of forward and backward beside the weights, without what kernels allocate inside.

    Args:
        config: Of a small number of layers of real width.
        tokens: Of one document.
        dtype: Of the weights.
        autocast: Linear maps and attention in bf16.
        checkpointing: transformers' own.
        memory: A `TrainingMemory`.
        offload: transformers' own: hidden states are elsewhere until they are asked for.
    """
    ranks = Ranks(Layout.of([tokens], 1))

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **_: Any) -> Any:
        half = torch.bfloat16 if autocast else dtype
        return attention(q.to(half), k.to(half), v.to(half), ranks, scale=scaling)[0], None

    config._attn_implementation = NAME
    stock_dtype, counter = torch.get_default_dtype(), Counter()
    # there is no mask function of that name, so that no masks are made
    named = mock.patch.dict(AttentionInterface._global_mapping, {NAME: attend})
    hosted = mock.patch("transformers.modeling_utils.save_on_cpu", _elsewhere)
    fused = mock.patch("hf_longctx.ops.rms_norms.rms_norm", _rms_norm)
    with named, hosted, fused, FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(dtype)
        try:
            model: Any = AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(stock_dtype)
        model.train()
        if memory is not None:
            looks = "mlp._mixes_tokens", "norms.form_of"  # at values
            found = None, RMSNormForm(1e-6, False)
            with ExitStack() as patched:
                for name, value in zip(looks, found, strict=True):
                    patched.enter_context(mock.patch(f"hf_longctx.training.memory.{name}", return_value=value))
                memory.apply(model)
        if checkpointing:
            enable_checkpointing(model, {"use_reentrant": False}, offload=offload)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        for p in model.parameters():
            counter.ignore(p)
        with counter:
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
    return counter.peak


def _elsewhere(**_: Any) -> saved_tensors_hooks:
    """As torch's `save_on_cpu`, of tensors without values: of what is saved only the form is kept."""
    return saved_tensors_hooks(
        lambda x: (x.shape, x.stride(), x.dtype), lambda form: torch.empty_strided(*form[:2], dtype=form[2])
    )


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    """In memory as torch's kernel of a GPU, which the CPU has not."""
    return _RMSNorm.apply(x, weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
