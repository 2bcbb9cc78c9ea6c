"""One token of every row at a time: a static cache of transformers, and each step replayed from a CUDA graph.

Launching the kernels of a small model one by one takes many times as long as running them. On a CPU the same steps run
as they are.
"""

# B rows, W columns of prompts, L of a chunk of them, S columns of the cache, V vocabulary
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from hf_longctx.upstream.caches import given_cache
from recipes.long_writer.grouped import one_token, positions_of

CHUNK = 512  # columns of prompts that are read at once


def bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of keys that are seen, and of those that are not."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


class Step:
    """Prompts that are read, and then one token of each row at a time.

    Args:
        model: A causal language model.
        ids_BW: Prompts, padded on the left.
        seen_BS: Which columns of the cache hold tokens of a prompt.
    """

    def __init__(self, model: Any, ids_BW: Tensor, seen_BS: Tensor) -> None:
        width = ids_BW.shape[1]
        self.model = model
        # added to scores, which every attention does, unlike masks of bool
        self.bias_BS = bias(seen_BS, model.dtype)
        self.cache = StaticCache(config=model.config, max_cache_len=seen_BS.shape[1])
        position_BW = (seen_BS[:, :width].cumsum(1) - 1).clamp(min=0)
        column_S = torch.arange(seen_BS.shape[1], device=seen_BS.device)
        for at in range(0, width, CHUNK):
            part = slice(at, min(at + CHUNK, width))
            seen_B1LS = (seen_BS[:, None] & (column_S <= column_S[part, None]))[:, None]
            out = model(
                input_ids=ids_BW[:, part],
                position_ids=position_BW[:, part],
                attention_mask=bias(seen_B1LS, model.dtype),
                **given_cache(model, self.cache),
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits_BV = out.logits[:, -1].clone()
        self.token_B1 = ids_BW[:, -1:].clone()
        self.position_B1 = position_BW[:, -1:].clone()
        self.column_1 = torch.tensor([width - 1], device=ids_BW.device)
        self._replay: Callable[[], None] | None = None

    def __call__(self, token_B: Tensor) -> None:
        """Read a token of each row; `logits_BV` are then those of the next."""
        self.token_B1.copy_(token_B[:, None])
        if self._replay is None and token_B.is_cuda:
            self._forward()  # kernels are compiled and chosen
            self._replay = self._recorded()
        elif self._replay is None:
            self._forward()
        else:
            self._replay()

    def going_on(self, row_N: Tensor, columns: int) -> Step:
        """The same place of some rows, in a cache with so many columns, at least those that are read already.

        This one is used up: each of its layers is given back when it is copied.
        """
        self._replay = None  # its graph reads this one's tensors
        found = copy.copy(self)
        kept = min(columns, self.bias_BS.shape[1])
        hidden = torch.finfo(self.bias_BS.dtype).min
        found.bias_BS = torch.nn.functional.pad(self.bias_BS[row_N, :kept], (0, columns - kept), value=hidden)
        found.cache = StaticCache(config=self.model.config, max_cache_len=columns)
        for own, layer in zip(self.cache.layers, found.cache.layers, strict=True):
            layer.lazy_initialization(own.keys[row_N, :, :1], own.values[row_N, :, :1])
            for name in ("keys", "values"):
                getattr(layer, name)[:, :, :kept] = getattr(own, name)[row_N, :, :kept]
                setattr(own, name, None)
            layer.cumulative_length.copy_(own.cumulative_length)
        for name in ("logits_BV", "token_B1", "position_B1"):
            setattr(found, name, getattr(self, name)[row_N])
        found.column_1 = self.column_1.clone()
        return found

    def _forward(self) -> None:
        self.position_B1.add_(1)
        self.column_1.add_(1)
        self.bias_BS.index_fill_(1, self.column_1, 0)
        mask_B11S = self.bias_BS[:, None, None]
        with one_token(positions_of(mask_B11S)):
            out = self.model(
                input_ids=self.token_B1,
                position_ids=self.position_B1,
                attention_mask=mask_B11S,
                **given_cache(self.model, self.cache),
                use_cache=True,
            )
        self.logits_BV.copy_(out.logits[:, -1])

    def _recorded(self) -> Callable[[], None]:
        """The step as a CUDA graph. Recording runs nothing on the GPU."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._forward()
        replay: Callable[[], None] = graph.replay
        return replay
