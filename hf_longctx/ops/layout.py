"""How a model applies its rotary embedding to a head: its own function, over the dimensions that it is given."""

# B batch, H heads, L tokens, D head dim, R rotated dims
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ANGLES = ("cos", "sin", "freqs_cis")  # names of the arguments that are angles; the last one is complex


class RotaryLayout:
    """A model's own rotary function, as its attention calls it.

    Interleaved, partial and complex layouts are whatever the function does, so what it computes is computed bit for
    bit. Equal layouts are one object (see `rotary_layout`).

    Args:
        function: `apply_rotary_pos_emb` or its kin.
        count: How many tensors it rotates in one call.
        keywords: What else it is given.
        tokens_first: It is given (B, L, H, R), not (B, H, L, R).
        start: The first of the dims that it is given.
        size: How many dims it is given; None: all of them.
        order: Where each dim of its output comes from, at angle 0; None: from the same place.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        count: int = 2,
        keywords: tuple[tuple[str, Any], ...] = (),
        tokens_first: bool = False,
        start: int = 0,
        size: int | None = None,
        order: tuple[int, ...] | None = None,
    ) -> None:
        self.function, self.count, self.keywords, self.tokens_first = function, count, dict(keywords), tokens_first
        self.start, self.size, self.order = start, size, order
        self.angles = angle_names(function)
        self.complex = "freqs_cis" in self.angles
        # positions of the dims, in the order in which the function takes them
        self._back = None if order is None else sorted(range(len(order)), key=order.__getitem__)
        self._key = function, count, keywords, tokens_first, start, size, order

    def __reduce__(self) -> tuple[Any, ...]:
        return rotary_layout, self._key

    def __deepcopy__(self, memo: dict[int, Any]) -> RotaryLayout:
        return self

    def __call__(self, x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys rotated by cosines and sines (B or 1, L or 1, R or R / 2), in the order of `unrotated`."""
        D = x_BHLD.shape[-1]
        whole = self.size is None or self.size == D
        x = x_BHLD if whole else x_BHLD[..., self.start : self.start + (self.size or D)]
        if self._back is not None:
            x = x[..., self._back]
        heads = 1
        if self.tokens_first:
            x, heads = x.transpose(1, 2), 2
        # a function of two tensors rotates both; one head of the first is the cheapest second
        tensors = [x, *(x.narrow(heads, 0, 1),) * (self.count - 1)]
        given = {"cos": cos, "sin": sin}
        if self.complex:
            given = {"freqs_cis": torch.complex(cos.float(), sin.float())}
        out = self.function(*tensors, *(given[name] for name in self.angles), **self.keywords)
        rotated: Tensor = out if isinstance(out, Tensor) else out[0]
        if self.tokens_first:
            rotated = rotated.transpose(1, 2)
        if whole:
            return rotated
        end = self.start + rotated.shape[-1]
        return torch.cat([x_BHLD[..., : self.start], rotated.to(x_BHLD.dtype), x_BHLD[..., end:]], -1)


@functools.cache
def rotary_layout(*args: Any, **kwargs: Any) -> RotaryLayout:
    """The one `RotaryLayout` of these arguments."""
    return RotaryLayout(*args, **kwargs)


@functools.cache
def angle_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's arguments that are angles, in order; none for one that rotates nothing by them."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins
        return ()
    return tuple(name for name in names if name in ANGLES)


@functools.cache
def rotates_halves(layout: RotaryLayout, dim: int, rotary_dim: int) -> bool:
    """Does it compute x cos + (-x2, x1) sin over a head's first `rotary_dim` dims? Tried, not guessed."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, cos, sin = (
        torch.randn(s, generator=generator, device="cpu")
        for s in ((1, 2, 3, dim), (1, 3, rotary_dim), (1, 3, rotary_dim))
    )
    try:
        got = layout(x, cos, sin)
    except Exception:  # some layouts want other shapes: then it is not the common one
        return False
    low, high = x[..., :rotary_dim].chunk(2, dim=-1)
    expected = x[..., :rotary_dim] * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]
    both = torch.cat((expected, x[..., rotary_dim:]), -1)
    return got.shape == both.shape and torch.allclose(got, both, atol=1e-6)
