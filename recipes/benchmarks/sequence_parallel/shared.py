"""Attention of one layer that the processes share, timed, and compared with all of it on one card."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.parallel import Layout, Ranks, attention

from .world import World, relative

DIM, TINY_DIM = 64, 8
BOUND = 2e-2  # relative: bf16 keeps 8 bits of the weights, the output and the gradients, twice


def drawn(tokens: int, heads: tuple[int, int], world: World, seed: int = 0) -> list[Tensor]:
    """q, k, v and the output's gradient of all tokens, as layers have them; the same on every process."""
    generator = torch.Generator(world.device).manual_seed(seed)
    H, G = heads
    every = []
    for count in (H, G, G, H):
        shape = 1, tokens, count, TINY_DIM if world.tiny else DIM
        every.append(torch.randn(shape, generator=generator, device=world.device).to(world.dtype))
    return [*(x.transpose(1, 2) for x in every[:3]), every[3]]


class Shared:
    """Attention of this process' rows of a layout, forward and backward."""

    def __init__(self, layout: Layout, kind: str, tensors: list[Tensor], world: World) -> None:
        self.ranks = Ranks(layout, kind, device=world.device)
        self.places = layout.places[self.ranks.rank].to(world.device)
        self.leaves = [x[:, :, self.places].detach().requires_grad_() for x in tensors[:3]]
        self.grad = tensors[3][:, self.places].contiguous()
        self.out = self.forward()

    def forward(self) -> Tensor:
        q, k, v = self.leaves
        return attention(q, k, v, self.ranks, scale=q.shape[-1] ** -0.5)[0]

    def backward(self) -> tuple[Tensor, ...]:
        """Of the output that the constructor made."""
        return torch.autograd.grad(self.out, self.leaves, self.grad, retain_graph=True)

    def times(self, world: World, runs: int) -> tuple[float, float]:
        """Milliseconds of forward and of backward."""
        return world.milliseconds(self.forward, runs), world.milliseconds(self.backward, runs)

    def off(self, true: Shared, world: World) -> float:
        """How far output and gradients are off from those of all rows on one process; the worst."""
        pairs = [(self.out, true.out[:, self.places])]
        pairs += [(a, b[:, :, self.places]) for a, b in zip(self.backward(), true.backward(), strict=True)]
        return world.worst(max(relative(a, b) for a, b in pairs if b.numel()))[0]
