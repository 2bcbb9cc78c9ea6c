"""Single cached steps against one forward of the whole text, under LMInfinite and in the stock model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hf_longctx import LMInfinite
from hf_longctx.evaluation.rows import row
from hf_longctx.ops.checked import layer_tolerance, relative_error
from hf_longctx.upstream.caches import given_cache

from .wide_models import Geometry, Sizes, equal_experts

STEPS = 8
NOISE = 1.5  # two results that are both off by rounding differ by about 1.4 times that


def rows(model: Any, geometry: Geometry, sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """The difference in fp32, which shows mistakes, and in bf16 over what bf16 is off by itself."""
    torch.manual_seed(1)
    text = torch.randint(3, model.config.vocab_size, (1, sizes.text), device=device)
    method = LMInfinite(n_global=sizes.n_global, n_local=sizes.n_local)
    half = model.dtype != torch.float32
    if half:
        own = {"LMInfinite": _difference(model, text, method)[0], "stock": _difference(model, text)[0]}
    experts = equal_experts(model)
    if half:
        ours, full = _difference(model, text, method)
        stock, _ = _difference(model, text)
    with in_fp32(model):
        exact, right = _difference(model, text, method)
        stock_exact, plain = _difference(model, text)
    name = f"{STEPS} cached steps against a forward of {sizes.text:,} tokens, difference of logits"
    name = f"{geometry.name}: {name}{', experts of equal weights' * experts}"
    beside = {"stock": stock_exact, "LMInfinite against stock": relative_error(right, plain)}
    yield row(f"{name}, fp32", exact, "", bar=f"<= {layer_tolerance(torch.float32):.0e}", beside=beside)
    if half:
        error = relative_error(full, right)
        beside = {"bf16": ours, "bf16 against fp32, one forward": error, "stock, bf16": stock}
        detail = {f"{who}, bf16, experts of their own": value for who, value in own.items()} if experts else None
        what = f"{name}, bf16, over the error of bf16 itself"
        yield row(what, ours / error, "", bar=f"<= {NOISE}", beside=beside, detail=detail)


@contextlib.contextmanager
def in_fp32(model: Any) -> Iterator[None]:
    """Compute in fp32: weights are cast where they are used, since a whole model in fp32 would not fit beside them."""
    if model.dtype == torch.float32:
        yield
        return
    handles, stored = [], {parameter: parameter.dtype for parameter in model.parameters()}

    def narrow(module: nn.Module, args: Any, output: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(stored[parameter])  # some are kept in fp32

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(lambda module, args, output: output.float()))
        elif any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(_widen, with_kwargs=True))
            handles.append(module.register_forward_hook(narrow))
    grouped = hasattr(model, "set_experts_implementation")
    was = model.get_experts_implementation() if grouped else None
    if grouped:
        model.set_experts_implementation("eager")  # grouped products of fp32 are not on every GPU
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if grouped:
            model.set_experts_implementation(was)


def _widen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, given.dtype))


@torch.no_grad()
def _difference(model: Any, text: Tensor, method: LMInfinite | None = None) -> tuple[float, Tensor]:
    """The relative difference of the last logits, step by step, from those of one forward; and the latter."""
    with contextlib.nullcontext() if method is None else method.on(model):
        full: Tensor = model(text, use_cache=False, logits_to_keep=STEPS).logits
        given = given_cache(model, DynamicCache(config=model.config))
        model(text[:, :-STEPS], **given, use_cache=True, logits_to_keep=1)
        steps = [model(text[:, [i]], **given, use_cache=True).logits for i in range(-STEPS, 0)]
    if text.is_cuda:
        torch.cuda.empty_cache()
    return relative_error(torch.cat(steps, 1), full), full
