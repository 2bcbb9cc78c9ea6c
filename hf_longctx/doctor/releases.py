"""The releases of what hf_longctx stands on, and whether its self-check passes on them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

import torch

from ..anatomy import find_decoder
from ..attention.steps import compare_step
from ..methods.position_free import PositionFree
from ..upstream.versions import TESTED, untested
from .diagnosis import Diagnosis

OTHERS = "torch", "peft", "accelerate", "huggingface_hub", "tokenizers", "safetensors"


def releases() -> Iterator[Diagnosis]:
    """transformers, and whether it was tested; the others."""
    here = metadata.version("transformers")
    minor = ".".join(here.split(".")[:2])
    known = ", ".join(TESTED)
    if minor in TESTED:
        told = f"tested ({known})"
    elif untested():
        told = f"newer than those tested ({known}): each apply compares a cached step first"
    else:
        told = f"between those tested ({known})"
    yield Diagnosis("transformers", f"{here}, {told}")
    yield Diagnosis("beside it", ", ".join(f"{name} {metadata.version(name)}" for name in OTHERS))


def self_check() -> Iterator[Diagnosis]:
    """Attention over un-rotated keys on a tiny Llama: layer by layer, and in a cached step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    try:
        with PositionFree().on(model):
            compare_step(find_decoder(model))
    except ValueError as error:
        yield Diagnosis("self-check", f"attention methods are refused here: {error}", wrong=True)
    else:
        yield Diagnosis("self-check", "passed: layers, and a step over the cache, of a tiny Llama")
