"""The lengths at which time and memory are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import LlamaConfig

from ..plan import LLAMA_8B
from ..reading import K


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Lengths in tokens, unless said otherwise.

    Args:
        far: Of the text after which a token is decoded, and of the one that is read.
        stock: Where the stock model decodes.
        asked: The last ones of a text that look up.
        steps: Tokens that are timed, and of these the first ones that are not counted.
        written: Of one `generate`, in which recordings are counted.
        beams: Of the text that beams continue.
        older: Of the text that is read, and of the one that is decoded after, beside an older source tree.
        large: Of the text that a model of 8B geometry reads.
        flat: After which its device memory is first looked at.
        config: The settings of that model.
        window: Of that model, and of the layer alone.
        attended: Keys of a layer alone; each has a bar in `one_layer`.
        chosen: Keys that the layer alone looks up.
    """

    far: int = 1_000_000
    stock: int = 128 * K
    asked: int = 256
    steps: tuple[int, int] = (40, 8)
    written: int = 4096
    beams: int = 256 * K
    older: tuple[int, int] = (32 * K, 128 * K)
    large: int = 512 * K
    flat: int = 128 * K
    config: Any = field(default_factory=lambda: LLAMA_8B)
    window: int = 8 * K
    attended: tuple[int, ...] = (1024 * K, 128 * K)
    chosen: int = 64


TINY_SCALE = Scale(
    far=1200,
    stock=300,
    asked=16,
    steps=(3, 1),
    written=6,
    beams=1200,
    older=(300, 300),
    large=700,
    flat=400,
    config=LlamaConfig(
        **{"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 32},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    ),
    window=64,
    attended=(700, 400),
    chosen=4,
)
