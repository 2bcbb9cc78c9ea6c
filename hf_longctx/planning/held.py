"""What a model's own cache holds, found out by filling one on the meta device: shapes and dtypes, no memory.

Configs do not say: layers share keys, values are narrower than keys, recurrent and convolution states are beside them
or in their place, each family in its own way.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LENGTHS = (128, 256)  # tokens of two forwards: what differs between their caches grows with the text
DTYPE = torch.bfloat16  # tensors of another dtype (fp32 states) have it whatever the model's is
REMEMBERED = 32
# by class and config: the same model is planned for one length after the other, and a forward takes half a second
_found: dict[str, list[Held]] = {}


@dataclass(frozen=True)
class Held:
    """What one layer's cache holds for each row, in elements of the model's dtype and in bytes of any other.

    Args:
        token_elements: Keys and values of a token.
        kept: The tokens whose keys and values are kept at most. None: all.
        grows: What else each token adds, such as an indexer's keys.
        elements: What does not grow: convolution and recurrent states.
        n_bytes: The same, of states whose dtype does not follow the model's.
    """

    token_elements: int = 0
    kept: int | None = None
    grows: int = 0
    elements: int = 0
    n_bytes: int = 0


def held_by(decoder: Any) -> list[Held]:
    """What each layer of the cache of `decoder`, a text decoder on the meta device, holds; last what is in no layer.

    Raises any error of the forward: a model that looks at values cannot run without them.
    """
    key = f"{type(decoder).__qualname__} {decoder.config.to_json_string(use_diff=False)}"
    if key not in _found:
        if len(_found) >= REMEMBERED:
            _found.clear()
        _found[key] = _ask(decoder)
    return _found[key]


def _ask(decoder: nn.Module) -> list[Held]:
    model = _runnable(copy.deepcopy(decoder))
    short, long = (_fill(model, n) for n in LENGTHS)
    if len(short.layers) != len(long.layers):
        raise ValueError(f"{type(short).__name__}: it has more layers after {LENGTHS[1]} tokens than before.")
    found = [_held(*layers) for layers in zip(short.layers, long.layers, strict=True)]
    return [*found, _held(short, long)]


def _runnable(model: Any) -> Any:
    """The model in `DTYPE` and eval mode, without what looks at values: routed experts, changing frequencies."""
    for module in model.modules():
        if "top_k_index" in inspect.signature(type(module).forward).parameters:
            module.forward = _same  # experts: output of the input's shape
        kind = getattr(module, "rope_type", None)
        if kind is not None:  # dynamic and longrope look at the largest position
            module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
    return model.to(DTYPE).eval()


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _fill(model: Any, tokens: int) -> Any:
    """The cache that the model makes for itself and fills."""
    with torch.no_grad():
        output = model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"), use_cache=True)
    caches = [value for value in output.values() if hasattr(value, "layers")]
    if len(caches) != 1:
        raise ValueError(f"{type(model).__name__}: its output has {len(caches)} caches ({', '.join(output)}), not one.")
    return caches[0]


def _held(short: Any, long: Any) -> Held:
    window = getattr(long, "sliding_window", None)
    pair = [getattr(long, name, None) for name in ("keys", "values")]
    token = grows = elements = n_bytes = 0
    for before, after in zip(_tensors(short), _tensors(long), strict=True):
        if window is not None and any(after is one for one in pair):
            token += after.numel() // after.shape[-2]  # [batch, heads, tokens, dim]
            continue
        each = (after.nbytes - before.nbytes) // (LENGTHS[1] - LENGTHS[0])
        constant = after.nbytes - each * LENGTHS[1]
        if any(after is one for one in pair):
            token += each // DTYPE.itemsize
        else:
            grows += each // DTYPE.itemsize
        if after.dtype == DTYPE:
            elements += constant // DTYPE.itemsize
        else:
            n_bytes += constant
    return Held(token, None if window is None else window - 1, grows, elements, n_bytes)


def _tensors(layer: Any) -> Iterator[Tensor]:
    """The tensors of a cache layer, or those of a cache that are in none of its layers; counters are left out."""
    seen: set[int] = set()
    for name, value in vars(layer).items():
        several = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for item in several if name != "layers" else ():
            if isinstance(item, Tensor) and item.dim() and id(item) not in seen:
                seen.add(id(item))
                yield item
