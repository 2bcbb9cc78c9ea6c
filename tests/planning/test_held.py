"""The bytes that `plan` gives for a cache against those of the cache that the stock model fills, kind by kind."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from hf_longctx import LMInfinite, PositionFree, StreamingLLM, plan
from hf_longctx.cache.base import UnrotatedLayer
from hf_longctx.planning import shape as shapes
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.options import as_read
from hf_longctx.planning.predict import Job, kv_bytes
from hf_longctx.planning.shape import build, measure
from hf_longctx.upstream.caches import cache_out
from tests.families.census.building import config_of as census_config
from tests.families.table import FAMILIES, SERVED
from tests.tiny import SIZES, text

SIX = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 64}
SHARED = {**SIX, "head_dim": 8, "num_kv_shared_layers": 2}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": SIZES["vocab_size"]}
MAMBA2 = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}

# how caches differ: the kind, the model type and its settings beyond those of every tiny model
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "layers that share keys": (
        "gemma3n_text",
        {**SHARED, **PER_LAYER, "intermediate_size": [48] * 6, "laurel_rank": 4, "altup_num_inputs": 2}
        | {"activation_sparsity_pattern": [0.0] * 6},
    ),
    "layers that share keys, of two widths": (
        "gemma4_text", {**SHARED, **PER_LAYER, "global_head_dim": 16, "intermediate_size": 48}),
    "values narrower than keys": (
        "mimo_v2_flash",
        {"head_dim": 12, "v_head_dim": 8, "swa_head_dim": 12, "swa_v_head_dim": 8, "n_routed_experts": 4}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1},
    ),
    "keys and mamba 2 states in one layer": ("falcon_h1", MAMBA2),
    "mamba 2 layers among attention layers": (
        "bamba", {**MAMBA2, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_groups": 1}),
    "delta rule": (
        "qwen3_5_text", {**LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    "short convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "linear attention in a cache of the model's own": (
        "minimax",
        {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "block_size": 16}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "delta rule among plain layers": (
        "olmo_hybrid", {**LINEAR, "layer_types": ["linear_attention", "full_attention"]}),
    "windows": ("mistral", {"sliding_window": 64}),
    "windows and plain layers": ("gemma2", {**SIX, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "frequencies that switch": ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}}),
    "frequencies that grow": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "experts": ("qwen3_moe", {**EXPERTS, "head_dim": 8}),
}  # fmt: skip
DTYPES = {(kind, dtype) for kind in KINDS for dtype in (torch.float32, torch.bfloat16)}
# the experts of JetMoe cannot be run without weights, which the plan says
EVERY = [name for name in SERVED if name != "jetmoe"]
DTYPES |= {(name, torch.float32) for name in EVERY}
DTYPES |= {(name, torch.bfloat16) for name in ("llama4_text", "qwen3_next", "gpt_oss", "deepseek_v3")}
HERE = {*EVERY, *(kind for kind, row in KINDS.items() if row[0] in CONFIG_MAPPING)}


def config_of(kind: str) -> Any:
    if kind not in KINDS:
        return census_config(kind, **FAMILIES[kind].settings)
    name, settings = KINDS[kind]
    return AutoConfig.for_model(name, **{**SIZES, **settings})


def tensors(value: Any, seen: set[int]) -> list[Tensor]:
    """All tensors that can be reached from a cache, counters left out."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value] if value.dim() else []
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    else:
        inner = list(vars(value).values()) if type(value).__module__.startswith("transformers") else []
    return [tensor for one in inner for tensor in tensors(one, seen)]


def filled_bytes(config: Any, tokens: int, dtype: torch.dtype, method: Any = None) -> int:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        with contextlib.nullcontext() if method is None else method.on(model):
            output = model(text(2, tokens), use_cache=True)
    cache = cache_out(output)
    ours = [layer for layer in cache.layers if isinstance(layer, UnrotatedLayer)]
    cache.layers = [layer for layer in cache.layers if layer not in ours]
    return sum(layer.nbytes() for layer in ours) + sum(tensor.nbytes for tensor in tensors(cache, set()))


@pytest.mark.parametrize(("kind", "dtype"), sorted((row for row in DTYPES if row[0] in HERE), key=str), ids=str)
def test_kv_bytes_are_those_of_the_cache_that_the_model_fills(kind: str, dtype: torch.dtype) -> None:
    config = config_of(kind)
    shape = measure(build(config))
    job = Job(tokens=200, batch=2, dtype_bytes=dtype.itemsize, machine=MACHINES["cpu"], memory_bytes=2**34)
    assert kv_bytes(shape, job) == filled_bytes(config, 200, dtype)
    assert shape.caveat == ""


METHODS = [LMInfinite(n_global=3, n_local=12), StreamingLLM(n_sink=2, window=9), PositionFree()]


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_kv_bytes_under_a_method_are_those_of_the_cache_that_it_fills(method: Any, family: str) -> None:
    config = config_of(family)
    meta = build(config)
    _, shape = as_read(method, meta, measure(meta))
    job = Job(tokens=200, batch=2, dtype_bytes=4, machine=MACHINES["cpu"], memory_bytes=2**34)
    assert kv_bytes(shape, job) == filled_bytes(config, 200, torch.float32, method)


def deepseek_v2_lite() -> Any:
    """The sizes of DeepSeek-V2-Lite."""
    yarn = {"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707, "rope_theta": 10000}
    return AutoConfig.for_model(
        "deepseek_v2", vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
        num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16, n_shared_experts=2, n_routed_experts=64,
        kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, head_dim=64,
        num_experts_per_tok=6, n_group=1, topk_group=1, first_k_dense_replace=1, max_position_embeddings=163840,
        rope_parameters={"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, **yarn},
    )  # fmt: skip


def test_a_latent_is_all_that_is_cached_and_what_is_made_of_it_is_held_meanwhile() -> None:
    found = plan(deepseek_v2_lite(), "128k", "80GB", method=LMInfinite(n_global=10, n_local=4096))
    stock, window = found.options[0], found.options[-1]
    for one in (stock, window):
        assert one.prediction is not None
        assert one.prediction.weight_bytes / 2 == pytest.approx(15.7e9, rel=0.01)  # as its model card says
    tokens, layers, elements = 131072, 27, 512 + 64
    assert stock.prediction is not None
    assert window.prediction is not None
    assert stock.prediction.kv_bytes == tokens * layers * elements * 2
    assert window.prediction.kv_bytes == 4105 * layers * (elements * 2 + 2 * 8)
    expanded = tokens * 16 * 2 * 192 * 2  # keys and values of all heads of one layer
    assert stock.prediction.activation_bytes > expanded > window.prediction.activation_bytes
    every_layer = 2 * 27 * tokens * 512 * 16 * (128 + 128)  # FLOPs to make them in all layers, for every token written
    assert stock.prediction.decode_seconds_eager > every_layer / 1e15 > window.prediction.decode_seconds_eager / 10


def test_at_least_the_kinds_of_the_oldest_release_are_here() -> None:
    assert len(HERE) > 45, sorted({*KINDS, *FAMILIES} - HERE)


@pytest.mark.parametrize("name", ["jamba", "zamba2", "nemotron_h", "mamba2", "kimi_linear", "lfm2_moe"])
def test_models_in_which_no_rope_is_found_are_refused_by_name(name: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    config = CONFIG_MAPPING[name](**({"layer_types": ["conv"] * 32} if name == "lfm2_moe" else {}))
    with pytest.raises(ValueError, match=f"{type(config).__name__}: no causal language model with RoPE"):
        plan(config, 200, "16GiB")


def test_states_do_not_grow_and_are_of_their_own_dtype() -> None:
    config = config_of("delta rule")
    short, long = (plan(config, n, "16GiB").options[0].prediction.kv_bytes for n in (100, 300))  # type: ignore[union-attr]
    assert long - short == 200 * 2 * 2 * 8 * 2  # one layer of two: key and value, 2 heads of 8, bfloat16
    wide = plan(config, 100, "16GiB", dtype="float32").options[0].prediction
    assert wide is not None
    assert short < wide.kv_bytes < 2 * short, "recurrent states are float32 in both"


def test_where_a_cache_cannot_be_asked_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks_at_values(decoder: Any) -> Any:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    config = config_of("short convolutions")
    right = plan(config, 200, "16GiB").options[0].prediction
    monkeypatch.setattr(shapes, "held_by", looks_at_values)
    found = plan(config, 200, "16GiB")
    (note,) = [note for note in found.notes if "could not be found out" in note]
    assert "states of 1 other layers are not counted" in note
    guessed = found.options[0].prediction
    assert right is not None
    assert guessed is not None
    assert 0 < guessed.kv_bytes < right.kv_bytes
