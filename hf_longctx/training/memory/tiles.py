"""`in_tiles`: a function of each token, computed a tile of tokens at a time, in forward and in backward.

Backward computes every tile again, so only the inputs are kept. Gradients of weights are summed in at least fp32 and
leave once, so that hooks on parameters (DDP, FSDP2) run once.
"""

# N tokens
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from .casts import cast_copies


@dataclass(frozen=True, eq=False)
class Tiled:
    """A function of tokens.

    Args:
        run: Of a tile and of where its tokens stand; a tensor with a row for each token.
        module: It reads the parameters of this module.
        tile: Tokens at a time.
    """

    run: Callable[[Tensor, slice], Tensor]
    module: nn.Module
    tile: int

    def parameters(self) -> list[Tensor]:
        """Those with a gradient. Asked for again in backward: FSDP2 exchanges them."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def slices(self, tokens: int) -> Iterator[slice]:
        """Where the tiles are."""
        return (slice(at, min(at + self.tile, tokens)) for at in range(0, tokens, self.tile))


# torch.compile goes around it: the backward pass reads what another node keeps, which no graph of dynamo has
@torch.compiler.disable
def in_tiles(tiled: Tiled, x_N: Tensor) -> Tensor:
    """`tiled.run` of all tokens, (N, ...)."""
    parameters = tiled.parameters()
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in (x_N, *parameters)):
        return torch.cat([tiled.run(x_N[rows], rows) for rows in tiled.slices(len(x_N))])
    # kept before anything is computed: recomputation under checkpointing ends where the last tensor is kept
    kept_N = _Kept.apply(x_N) if x_N.requires_grad else x_N
    return _Tiles.apply(tiled, kept_N, *parameters)


class _Kept(torch.autograd.Function):
    """The same tensor, kept for `_Tiles`."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_N)
        return x_N.view_as(x_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiled: Tiled, x_N: Tensor, *parameters: Tensor) -> Tensor:
        ctx.tiled, ctx.keeper = tiled, x_N.grad_fn
        if not x_N.requires_grad:
            ctx.save_for_backward(x_N)
        ctx.surroundings = _Surroundings.of(x_N)
        with ctx.surroundings.autocast():
            return torch.cat([tiled.run(x_N[rows], rows) for rows in tiled.slices(len(x_N))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tiled, wants_x = ctx.tiled, ctx.needs_input_grad[1]
        (x_N,) = (ctx.keeper if wants_x else ctx).saved_tensors
        dx_N = torch.empty_like(x_N) if wants_x else None
        sums = _Sums(tiled.parameters())
        surroundings = ctx.surroundings
        with surroundings.random(), surroundings.autocast(), torch.enable_grad(), _leaves(tiled.module) as parameters:
            for rows in tiled.slices(len(x_N)):
                part = x_N[rows].detach().requires_grad_(wants_x)
                out = tiled.run(part, rows)
                weights: Sequence[Any] = cast_copies(out, parameters) if surroundings.cast_to else parameters
                inputs = [part, *weights] if wants_x else weights
                found = torch.autograd.grad(out, inputs, grads[0][rows], allow_unused=True)
                if dx_N is not None:
                    dx_N[rows] = 0 if found[0] is None else found[0]
                sums.add(found[1:] if wants_x else found)
        return None, dx_N, *sums.result()


@contextmanager
def _leaves(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block a module has others in place of its parameters, so that hooks on these do not see each tile."""
    owners = [part._parameters for part in module.modules()]
    before = [dict(owner) for owner in owners]
    leaves = {id(p): p.detach().requires_grad_() for p in module.parameters() if p.requires_grad}
    try:
        for owner in owners:
            owner.update({name: leaves.get(id(p), p) for name, p in owner.items()})  # type: ignore[misc]
        yield list(leaves.values())
    finally:
        for owner, stock in zip(owners, before, strict=True):
            owner.update(stock)


class _Sums:
    """Gradients of parameters, summed over tiles in at least fp32."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.dtypes = [p.dtype for p in parameters]
        self.sums: list[Tensor | None] = [None for _ in parameters]

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """The gradients of one tile."""
        for i, grad in enumerate(grads):
            if grad is not None:
                so_far = self.sums[i]
                wide = torch.promote_types(grad.dtype, torch.float32)
                self.sums[i] = grad.to(wide) if so_far is None else so_far.add_(grad)

    def result(self) -> list[Tensor | None]:
        """The gradients, in the dtypes of the parameters."""
        return [x if x is None else x.to(dtype) for x, dtype in zip(self.sums, self.dtypes, strict=True)]


@dataclass(frozen=True, eq=False)
class _Surroundings:
    """Random numbers and autocast as they were in forward, for backward."""

    device: torch.device
    cast_to: torch.dtype | None
    state: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def of(cls, x: Tensor) -> _Surroundings:
        kind = x.device.type
        cast_to = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return cls(x.device, cast_to, torch.get_rng_state(), *get_device_states(x))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Weights are cast once for all tiles, and the copies are dropped afterwards."""
        kind, enabled = self.device.type, self.cast_to is not None
        try:
            with torch.autocast(kind, self.cast_to, enabled=enabled):
                yield
        finally:
            if enabled:  # one that is made without gradients would serve others, who need them
                torch.clear_autocast_cache()

    @contextmanager
    def random(self) -> Iterator[None]:
        """Tiles are computed in the order of forward, and draw the same numbers."""
        devices = [self.device] if self.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            torch.set_rng_state(self.state)
            if devices:
                set_device_states(self.devices, self.states, device_type=self.device.type)
            yield
