"""The geometry that was measured most."""

from __future__ import annotations

from transformers import LlamaConfig

from hf_longctx.planning.shape import build
from hf_longctx.planning.train.sizes import TrainingSizes, sizes_of
from recipes.far.settings import LLAMA_1B


def sizes(config: LlamaConfig = LLAMA_1B) -> TrainingSizes:
    return sizes_of(build(config))
