"""Moving a cache back by some positions, for layers that transformers rotates itself.

Un-rotated layers are exact at any position. Sliding-window layers (Gemma3 has them beside full attention) keep their
stock class and rotated keys, and their angles are fp32 products with the position: ten million tokens later, they are
off by half a radian. Only distances matter to them, so positions may count from anywhere: from time to time the keys
are moved back to where angles are small.
"""

# L new tokens, W kept keys of a sliding window; the batch is always 1
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..anatomy import attention_layers, find_decoder
from ..attention.rerotate import Mover
from ..cache.copies import deep_copy
from ..cache.stock import is_bounded, is_window, unrotated_layers
from ..ops.checked import checked_once, relative_error

REACH = 2**16  # positions between two moves
FEW = 48  # tokens of a text that is read at two places
# relative: bf16 rounds by 5e-2 through a model, angles at 2**16 by less; scales that grow with the position make 2e-1
SAME = 1e-1


class Rebase:
    """Keeps the positions at which a model reads small: `move_back`, called before each forward, lowers them.

    Does nothing for models without rotated sliding-window layers, or whose other layers keep every key, or that compute
    more than angles from positions.
    """

    def __init__(self, model: Any, cache: Cache) -> None:
        sliding = [i for i, layer in enumerate(cache.layers) if is_window(layer)]
        self._unrotated = unrotated_layers(cache)
        self._sliding: list[tuple[Any, Any]] = []  # a module and its layer
        self._floor: int | None = None  # from here on the first tokens of bounded layers are as far as they can be
        if not sliding or not all(map(is_bounded, self._unrotated)):
            return
        decoder: Any = find_decoder(model)
        if not checked_once(decoder, "only distances matter", lambda: _only_distances_matter(decoder)):
            return
        self._mover = Mover(decoder)
        for module in attention_layers(decoder):
            index: Any = module.layer_idx
            if index in sliding:
                self._sliding.append((module, cache.layers[index]))

    def __deepcopy__(self, memo: Any) -> Rebase:
        modules = [module for module, _ in self._sliding]
        return deep_copy(self, memo, *modules, getattr(self, "_mover", None))

    def move_back(self, place: int, length: int) -> int:
        """Move what the cache keeps back, if `length` more tokens from `place` on would go too far; by how much."""
        if not self._sliding:
            return 0
        if self._floor is None or not any(layer.seen for layer in self._unrotated):
            # the first tokens stay what they are: asking a GPU once is enough
            floors = [layer.far() for layer in self._unrotated]
            if None in floors:
                return 0
            self._floor = max(floors, default=0)
        delta = place - self._floor
        if delta <= 0 or delta + length <= REACH:
            return 0
        for unrotated in self._unrotated:
            unrotated.move_back(delta)
        for module, layer in self._sliding:
            if layer.is_initialized:
                layer.keys = self._move_back(module, layer.keys, place, delta)
        return delta

    def _move_back(self, module: Any, keys: Tensor, place: int, delta: int) -> Tensor:
        """Keys as the model would have rotated them `delta` positions earlier: by the difference of its own angles."""
        return self._mover.move(module, keys, place - keys.shape[2], -delta)


@torch.no_grad()
def _only_distances_matter(decoder: Any) -> bool:
    """Does a text come out the same wherever it stands? Not where queries are scaled by their position (Beam)."""
    device = decoder.get_input_embeddings().weight.device
    pos = torch.arange(FEW, device="cpu" if device.type == "meta" else device)[None]
    ids = pos % decoder.config.vocab_size

    def read(start: int) -> Tensor:
        out: Tensor = decoder(input_ids=ids, position_ids=pos + start, use_cache=False).last_hidden_state
        return out

    return relative_error(read(2**16), read(0)) <= SAME
