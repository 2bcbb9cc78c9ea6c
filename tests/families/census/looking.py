"""Judges a tiny model under attention methods against the stock model: served, refused, WRONG or CRASH.

Served: PositionFree leaves the logits as they are, with left padding too; LMInfinite leaves a text as it is that lies
within its window; single tokens over a cache give what a full forward gives, at most three times as far off as the
stock model's own two ways are; undo gives the stock logits bit for bit. So does a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_longctx import LMInfinite, PositionFree
from hf_longctx.upstream.caches import cache_out, given_cache

# relative distances of logits: far above fp32's rounding through four layers, far below what a wrong position does
RIGHT = 1e-4
# of fp32: experts that get the padding's tokens otherwise grouped, attention without transformers' interface, upcasts
ROUNDING = 5e-7


@dataclass
class Verdict:
    """What was seen of one model type. Distances are relative, from the stock model or between two ways."""

    state: str
    why: str = ""
    same: float = 0.0
    same_padded: float = 0.0
    within_window: float = 0.0
    ways: float = 0.0
    ways_stock: float = 0.0
    undone: bool = True

    def off(self) -> float:
        """How far PositionFree is from the stock model: 0 for bit-equal."""
        return max(self.same, self.same_padded)

    def line(self) -> str:
        """In words."""
        if self.state not in ("served", "WRONG"):
            return f"{self.state}: {self.why}"
        beyond = f", beyond {ROUNDING:.0e}" if self.off() > ROUNDING else ""
        equal = f"within {self.off():.0e} of the stock model{beyond}" if self.off() else "equal to the bit"
        ways = f"cached and full forward {self.ways:.1e} apart (stock {self.ways_stock:.1e})"
        why = f"{self.why}; " if self.why else ""
        return f"{self.state}: {why}{equal}; {self.within_window:.1e} within the window; {ways}; undone {self.undone}"


@torch.no_grad()
def look(model: Any) -> Verdict:
    """The verdict on a model. An error of the stock model is raised."""
    generator = torch.Generator().manual_seed(1)
    short, long = (torch.randint(3, 200, (1, length), generator=generator) for length in (24, 80))
    ids, mask = torch.cat([short.roll(3, 1), short]), torch.ones(2, 24, dtype=torch.long)
    mask[0, :7] = 0
    stock = _logits(model, short)
    if not torch.isfinite(stock).all():
        raise ValueError("the stock model's logits are not finite")
    if not _is_causal(model, short, stock):
        return Verdict("no decoder", "a token changes the logits of earlier ones")
    stock_padded = _logits(model, ids, attention_mask=mask)[mask.bool()]
    seen = Verdict("WRONG", ways_stock=_two_ways(model, short, 20))
    try:
        with PositionFree().on(model):
            seen.same = distance(_logits(model, short), stock)
            seen.same_padded = distance(_logits(model, ids, attention_mask=mask)[mask.bool()], stock_padded)
        with LMInfinite(n_global=4, n_local=32).on(model):
            seen.within_window = distance(_logits(model, short), stock)
            seen.ways = _two_ways(model, long, 76)
        seen.undone = torch.equal(_logits(model, short), stock)
    except (ValueError, NotImplementedError) as error:
        unchanged = torch.equal(_logits(model, short), stock)
        return Verdict("refused" if unchanged else "WRONG", str(error), undone=unchanged)
    except Exception as error:
        return Verdict("CRASH", f"{type(error).__name__}: {error}")
    right = max(seen.off(), seen.within_window) < RIGHT and seen.ways < max(RIGHT, 3 * seen.ways_stock)
    if right and seen.undone:
        seen.state = "served"
    return seen


def distance(ours: Tensor, stock: Tensor) -> float:
    """Of two tensors, relative to the second's norm; infinite where one is not a number."""
    return float(((ours - stock).norm() / stock.norm().clamp(min=1e-9)).nan_to_num(nan=torch.inf))


def _logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    return model(input_ids=ids, **kwargs).logits.float()


def _is_causal(model: Any, ids: Tensor, logits: Tensor) -> bool:
    changed = ids.clone()
    changed[0, -1] = 5
    return distance(_logits(model, changed)[:, :-1], logits[:, :-1]) < RIGHT


def _two_ways(model: Any, ids: Tensor, first: int) -> float:
    """From a prefill and single tokens to a full forward."""
    full = _logits(model, ids, use_cache=False)[:, first - 1 :]
    places = torch.arange(ids.shape[1])[None]  # as `generate` does: some models count from 0 again without
    out = model(input_ids=ids[:, :first], position_ids=places[:, :first], use_cache=True)
    cache, rows = cache_out(out), [out.logits[:, -1:]]
    if cache is None:
        raise NotImplementedError("the stock model returns no cache of transformers' kind")
    for i in range(first, ids.shape[1]):
        one = slice(i, i + 1)
        held = given_cache(model, cache)
        rows.append(model(input_ids=ids[:, one], position_ids=places[:, one], use_cache=True, **held).logits[:, -1:])
    return distance(torch.cat(rows, 1).float(), full)
