"""The settings under test, and what stock `from_pretrained` must be told to give the same model."""

from __future__ import annotations

import copy
import math
from typing import Any

from hf_longctx import Giraffe, RopeScaling
from hf_longctx.upstream.versions import LONGROPE_PER_LAYER
from tests.tiny import config_of, tiny

# 4 frequencies in Llama's, Qwen3's, Gemma3's, Mistral's and SmolLM3's heads of 8; 2 in GPT-NeoX's, half of them rotary
N_FREQUENCIES = {"gpt_neox": 2}
SHORT, LONG = [1.0, 1.0, 1.5, 2.0], [1.0, 1.5, 3.0, 4.0]


def methods(family: str) -> dict[str, Any]:
    n = N_FREQUENCIES.get(family, 4)
    trained = {"original_max_position_embeddings": 16}
    longrope = {"type": "longrope", "factor": 4.0, **trained}
    return {
        "linear": RopeScaling(type="linear", factor=4),
        "ntk": RopeScaling(type="ntk", factor=4.0),
        "dynamic": RopeScaling(type="dynamic", factor=4.0),
        "yarn": RopeScaling(factor=4.0),
        "yarn_all": RopeScaling(factor=4.0, beta_fast=3, beta_slow=0.5, attention_factor=1.25, **trained),
        "llama3": RopeScaling(type="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0, **trained),
        "longrope": RopeScaling(**longrope, short_factor=SHORT[:n], long_factor=LONG[:n]),
        "longrope_static": RopeScaling(**longrope, short_factor=LONG[:n], long_factor=LONG[:n]),
        "giraffe": Giraffe(train_length=64),
        "giraffe_scaled": Giraffe(train_length=64, zero_below=0.01, middle=0.02, scale=2.0),
        "giraffe_power": Giraffe(basis="power", exponent=2.0, scale=2.0),
    }


MOVING = ("dynamic", "longrope")
STATIC = tuple(row for row in methods("llama") if row not in MOVING)


def scaled_by_hand(family: str, row: str) -> Any:
    """A tiny model whose own config is scaled, as a checkpoint from elsewhere is."""
    return tiny(family, rope_parameters=written_by_hand(methods(family)[row], config_of(family)))


def works_here(family: str, row: str) -> bool:
    """False where transformers is too old for the row, and the row is refused."""
    return LONGROPE_PER_LAYER or family != "gemma3" or not any(word in row for word in ("longrope", "giraffe"))


def full_of(config: Any) -> dict[str, Any]:
    parameters = config.rope_parameters
    return copy.deepcopy(parameters.get("full_attention", parameters))


def written_by_hand(method: Any, config: Any) -> dict[str, Any]:
    """The whole `rope_parameters` that stock `from_pretrained` needs, from the published formulas."""
    stock = full_of(config)
    dim = 2 * N_FREQUENCIES.get(config.model_type, 4)
    theta, full = stock["rope_theta"], {**stock}
    if isinstance(method, Giraffe):
        base = [1 / theta ** (2 * j / dim) for j in range(dim // 2)]
        if method.basis == "power":
            table = [base[j] * (1 - 2 * j / dim) ** method.exponent for j in range(dim // 2)]
        else:
            b = 2 * math.pi / method.train_length
            a, rho = b * method.zero_below, b * method.middle
            table = [f if f >= b else rho if f >= a else 0 for f in base]
        divisors = [1e18 if not f else base[j] / (f / method.scale) for j, f in enumerate(table)]
        full.update(rope_type="longrope", factor=1.0, attention_factor=1.0, short_factor=divisors, long_factor=divisors)
        full["original_max_position_embeddings"] = method.train_length or config.max_position_embeddings
    elif method.type == "ntk":
        full["rope_theta"] = theta * method.factor ** (dim / (dim - 2))
    else:
        fields = {k: v for k, v in method.spec().items() if v is not None and k not in ("name", "type", "replace")}
        full.update(rope_type=method.type, **fields)
        if method.type in ("yarn", "longrope", "llama3"):
            full.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    nested = "full_attention" in config.rope_parameters
    return {**copy.deepcopy(config.rope_parameters), "full_attention": full} if nested else full
