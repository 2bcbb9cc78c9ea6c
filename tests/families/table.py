"""Families with a full test: one for each way in which models differ, and those that are refused, with the reason.

The settings of their tiny models are the census's; a row says what a user should know, and what its test needs more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.families.census.building import build
from tests.families.census.scope import MODEL_TYPES
from tests.tiny import sharpen


@dataclass(frozen=True)
class Family:
    """One model type.

    Args:
        note: what sets a served family apart, for users; a family without one is like Llama.
        refused: the part of the error that names the reason; None for a family that is served.
        rounds: un-rotated keys give the stock logits up to fp32's rounding, where the stock model computes attention
            in another order (without transformers' attention interface) or precision; the others do so to the bit.
        pads: a padded row has the logits of the row alone, in the stock model; False where they differ.
        steps: a token over a cache has the logits of a full forward, in the stock model; False where they differ by
            more than rounding.
        settings: of its config, beyond those of the census.
    """

    note: str = ""
    refused: str | None = None
    rounds: bool = False
    pads: bool = True
    steps: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


ANGLELESS = "its layers without rotation get no angles"
NOPE = "its full-attention layers have no rotary embedding"
SINKS = "a learned sink per head joins its softmax"
CAPPED = "its attention logits are soft-capped"
SLICED = "rotates the first dimensions of a head only, sliced off before its rotary function"
LATENT = "latent attention (MLA): rotates the last dimensions of a head only"
ONE_TENSOR = "its rotary function takes one tensor"
RECURRENT = "its full attention runs beside a recurrence, which stays as it is"
LINEAR = "its linear-attention layers stay as they are"
DIRECT = "calls torch's scaled_dot_product_attention itself"
EAGER = "computes attention in a method of its own"
INDEXED = "chooses or compresses the keys that a query sees (sparse attention)"
COMPRESSED = "which choose or compress their keys"
BOUNDED = "so their memory and distances are bounded already"
WEIGHTED = "Its scores depend on absolute positions, not on distances alone"
MASKED = "It does more with rotated queries and keys, or with its mask, than attend"
STATES = "its attention does more with the cache than store keys and values"
# sdpa of transformers 5.17 leaves the cap out
BY_EAGER = {"attn_implementation": "eager"}
# tests compare logits O(3): those of these models are larger
SMALLER = {"initializer_range": 0.01}

FAMILIES: dict[str, Family] = {
    "arcee": Family(),
    "cohere": Family(settings={"logit_scale": 1.0}),
    "cohere2": Family(NOPE, settings={"logit_scale": 1.0}),
    "diffllama": Family("attends twice a layer, to halves of its values"),
    "ernie4_5": Family(),
    "exaone4": Family(NOPE + " where others slide"),
    "gemma": Family(),
    "glm": Family(),
    "glm4": Family(),
    "granite": Family(settings=SMALLER),
    "jetmoe": Family("repeats cached keys for its experts"),
    "ministral3": Family(),
    "mixtral": Family(),
    "nemotron": Family(settings=SMALLER),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(),
    "phi3": Family(),
    "qwen2": Family(),
    "qwen3_moe": Family(),
    "qwen3_next": Family(LINEAR),
    "seed_oss": Family("drops attention out in training, which is refused", settings={"attention_dropout": 0.1}),
    "starcoder2": Family(),
    # softmax
    "gpt_oss": Family(SINKS, rounds=True),
    "flint": Family(SINKS),
    "gemma2": Family(CAPPED, settings=BY_EAGER),
    "vaultgemma": Family(CAPPED, settings=BY_EAGER),
    # rotation
    "phi": Family(SLICED),
    "stablelm": Family(SLICED),
    "persimmon": Family(SLICED),
    "gemma3n_text": Family(ONE_TENSOR + "; its last layers read keys of earlier ones"),
    "gemma4_text": Family(ONE_TENSOR + "; its last layers read keys of earlier ones"),
    "llama4_text": Family("rotates by complex numbers", pads=False),
    "beam": Family(ANGLELESS),
    "lara_mini": Family(ANGLELESS),
    # latent attention
    "minicpm3": Family(LATENT),
    "deepseek_v2": Family(LATENT + ", by complex numbers"),
    "deepseek_v3": Family(LATENT + ", and reorders them", rounds=True),
    "mimo_v2_flash": Family("its values are narrower than its keys"),
    # around attention
    "falcon": Family(DIRECT, rounds=True),
    "gptj": Family(EAGER, rounds=True),
    "codegen": Family(EAGER, rounds=True),
    "gpt_neox_japanese": Family(EAGER, rounds=True),
    "falcon_h1": Family(RECURRENT),
    "minimax": Family(LINEAR, pads=False),
    "lfm2_moe": Family("its convolutions stay as they are"),
    "zamba2": Family("uses one attention layer at several depths, each with keys of its own", pads=False, steps=False),
    "hrm_text": Family("uses its layers several times, each time with keys of its own"),
    # refused
    "axk2": Family(refused=INDEXED),
    "deepseek_v32": Family(refused=INDEXED),
    "deepseek_v4": Family(refused=COMPRESSED),
    "glm_moe_dsa": Family(refused=INDEXED),
    "hy_v4": Family(refused=INDEXED),
    "qwen4_exp_text": Family(refused=INDEXED),
    "ministral": Family(refused=BOUNDED),
    "moshi": Family(refused=BOUNDED),
    "hunyuan_v1_dense": Family(refused=WEIGHTED),
    "hunyuan_v1_moe": Family(refused=WEIGHTED),
    "dory": Family(refused=WEIGHTED),
    "doge": Family(refused=MASKED),
    "zaya": Family(refused=STATES),
}
HERE = [name for name in FAMILIES if name in MODEL_TYPES]  # a release need not have them all
SERVED = [name for name in HERE if FAMILIES[name].refused is None]
REFUSED = [name for name in HERE if name not in SERVED]
# one family for each way in which models differ, by what it shows: the sample of the census in every test run
SAMPLE = {FAMILIES[name].note: name for name in reversed(SERVED)} | {FAMILIES[name].refused: name for name in REFUSED}


def model_of(name: str, **settings: Any) -> Any:
    """The tiny model of a row, its attention far from uniform."""
    return sharpen(
        build(name, **{"initializer_range": 0.014, "eos_token_id": None} | FAMILIES[name].settings | settings)
    )
