"""The RMS norms of a model, wherever they are, in one kernel each: `install_fused_norms`."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...ops.rms_norms import RMSNormForm, eps_of, form_of, may_be_rms_norm
from ...patch import Patch
from .tally import Tally

STATE = "_hf_longctx_norm"  # in the __dict__ of a norm: its Norm
logger = logging.getLogger("hf_longctx")


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm's own forward, and what it computes."""

    stock: Callable[..., Tensor]
    form: RMSNormForm


def install_fused_norms(decoder: nn.Module, patch: Patch) -> None:
    """Fuse every RMSNorm of a decoder. ValueError, which says why, if there is none that can be."""
    tally = Tally()
    asked: dict[tuple[Any, ...], RMSNormForm | str] = {}
    for module in decoder.modules():
        if not may_be_rms_norm(module):
            continue
        if STATE in vars(module):
            raise ValueError(f"{type(module).__name__} is fused already. Undo the other patch first.")
        weight: Any = module.weight
        key = type(module), eps_of(module), tuple(weight.shape), weight.dtype
        if key not in asked:
            asked[key] = form_of(module)
        form = asked[key]
        if not isinstance(form, str) and not form.fits(weight.dtype):
            form = f"{type(module).__name__} adds 1 to its weight in fp32, which torch's kernel wants in {weight.dtype}"
        if isinstance(form, str):
            tally.refused[form] += 1
            continue
        patch.set(module, STATE, Norm(module.forward, form))
        patch.set(module, "forward", types.MethodType(_forward, module))
        tally.changed += 1
    empty = "it has no RMSNorm as a module of its own"
    reasons = tally.reasons(decoder, "no norm can be fused", empty, "fused_norms=False")
    if reasons:
        logger.warning("fused_norms=True: %d norms are fused, and these are not: %s.", tally.changed, reasons)


def _forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    norm: Norm = vars(self)[STATE]
    # a gate; or dtypes that the kernel does not take: FSDP2 and `model.to` change them afterwards
    if args or kwargs or hidden.dtype != self.weight.dtype or not norm.form.fits(hidden.dtype):
        return norm.stock(hidden, *args, **kwargs)
    return norm.form.fused(hidden, self.weight)
