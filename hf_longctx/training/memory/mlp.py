"""The MLPs of a model's layers, found by structure, computed over tiles of the sequence."""

# N tokens, H hidden size
from __future__ import annotations

import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...anatomy import attention_layers, decoder_layers
from ...ops.checked import layer_tolerance, relative_error
from ...patch import Patch
from ...upstream.signatures import parameters
from .tally import Tally
from .tiles import Tiled, in_tiles

STATE = "_hf_longctx_tiles"  # in the __dict__ of an MLP: its own forward
SHARED = "_hf_longctx_tile"  # in the __dict__ of an MLP: the Tile that all of a model share
logger = logging.getLogger("hf_longctx")


@dataclass(eq=False)
class Tile:
    """What the MLPs of a model share: how many tokens are computed at a time, and whether a shorter batch was seen."""

    tokens: int
    said: bool = False


def install_tiles(decoder: nn.Module, tokens: int, patch: Patch) -> None:
    """Let the MLPs of a decoder's layers compute `tokens` at a time. ValueError names them if none can."""
    attention = set(attention_layers(decoder))
    tile, tally = Tile(tokens), Tally()
    asked: dict[type, str | None] = {}
    for layer in decoder_layers(decoder):
        for child in layer.children():
            if not attention.isdisjoint(child.modules()) or len(_weighted(child)) < 2:  # a norm, or one linear map
                continue
            if STATE in vars(child):
                raise ValueError(f"{type(child).__name__} is tiled already. Undo the other patch first.")
            if type(child) not in asked:
                asked[type(child)] = why_not(child)
            reason = asked[type(child)]
            if reason is not None:
                tally.refused[reason] += 1
                continue
            patch.set(child, STATE, child.forward)
            patch.set(child, SHARED, tile)
            patch.set(child, "forward", types.MethodType(_forward, child))
            tally.changed += 1
    empty = "its layers have no MLP as a module of their own"
    reasons = tally.reasons(decoder, "no MLP can be tiled", empty, "tile=None")
    if reasons:
        logger.warning(
            "tile=%d: %d MLPs are tiled, and these parts of layers are not: %s.", tokens, tally.changed, reasons
        )


def why_not(module: nn.Module) -> str | None:
    """Why a module cannot be computed tile by tile, beginning with its name; None if it can."""
    name = type(module).__name__
    if any(isinstance(m, nn.ModuleList) for m in module.modules()):
        return f"{name} has a list of modules, as mixtures of experts have"
    for part in _weighted(module):
        if not hasattr(part, "in_features") and not hasattr(part, "nx"):  # Linear, or Conv1D of GPT-2
            inside = "" if part is module else f" with {type(part).__name__}"
            return f"{name}{inside} has weights that are not of linear maps: experts, a router or a convolution"
    forward = getattr(module.forward, "__func__", module.forward)
    needed = [p for p in list(parameters(forward).values())[1:] if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if len(needed) != 1:
        return f"{name} takes more than hidden states"
    return _mixes_tokens(module)


def _weighted(module: nn.Module) -> list[nn.Module]:
    """The modules that have weights of their own, which are more than vectors."""
    return [m for m in module.modules() if any(p.dim() > 1 for p in m._parameters.values() if p is not None)]


@torch.no_grad()
def _mixes_tokens(module: nn.Module) -> str | None:
    """Compute a few tokens together and one by one."""
    first: Any = _weighted(module)[0]
    weight: Tensor = next(module.parameters())
    if weight.device.type == "meta":
        return None
    dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
    generator = torch.Generator().manual_seed(0)
    size = getattr(first, "in_features", None) or first.weight.shape[0]
    x = torch.randn(1, 3, size, generator=generator).to(weight.device, dtype)
    name, training = type(module).__name__, module.training
    module.eval()
    try:
        together = module(x)
        alone = torch.cat([module(x[:, i : i + 1]) for i in range(3)], 1)
    except Exception as error:
        return f"{name} cannot be called with hidden states alone ({type(error).__name__}: {error})"
    finally:
        module.train(training)
    if not isinstance(together, Tensor) or together.shape[:2] != (1, 3):
        return f"{name} does not give one row for each token"
    if not relative_error(alone, together) <= layer_tolerance(dtype):
        return f"{name} lets tokens see each other"
    return None


def _forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    inner: Callable[..., Tensor] = vars(self)[STATE]
    tile: Tile = vars(self)[SHARED]
    tokens = hidden.shape[:-1].numel()
    if tokens <= tile.tokens:
        if not tile.said:
            logger.info("tile=%d: a batch of %d tokens is computed at once.", tile.tokens, tokens)
            tile.said = True
        return inner(hidden, *args, **kwargs)

    def run(x_NH: Tensor, _: slice) -> Tensor:
        return inner(x_NH[None], *args, **kwargs)[0]

    tiled = Tiled(run, self, tile.tokens)
    return in_tiles(tiled, hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])
