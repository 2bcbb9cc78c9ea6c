"""The attention function of transformers' interface by which an edit's few tokens attend from where they stand."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from ..ops.scattered import Places, attend

NAME = "longctx_few_queries"


_places: list[Places] = []  # of the forward that runs inside `using`  # of the forward that runs inside `using`


class using:
    """`with using(decoder, places):` lets the decoder's layers attend through `attend`. For one row of tokens."""

    def __init__(self, decoder: Any, places: Places) -> None:
        self.config, self.places = decoder.config, places

    def __enter__(self) -> None:
        _places.append(self.places)
        self.before = vars(self.config)["_attn_implementation_internal"]
        vars(self.config)["_attn_implementation_internal"] = NAME

    def __exit__(self, *error: object) -> None:
        vars(self.config)["_attn_implementation_internal"] = self.before
        _places.pop()


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface."""
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__}: it attends with more than queries, keys and values.")
    return attend(query[0], key[0], value[0], _places[-1], scaling)[None], None


# and no mask of that name: transformers then makes none
AttentionInterface.register(NAME, attention)
