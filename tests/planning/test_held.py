"""The bytes that `plan` gives for a cache against those of the cache that the stock model fills, kind by kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from hf_longctx import plan
from hf_longctx.planning import shape as shapes
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.predict import Job, kv_bytes
from hf_longctx.planning.shape import build, measure
from tests.families.table import EXPERTS, FAMILIES, LINEAR
from tests.tiny import SIZES, text

SIX = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 64}
SHARED = {**SIX, "head_dim": 8, "num_kv_shared_layers": 2}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": SIZES["vocab_size"]}
MAMBA2 = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_chunk_size": 16}
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
    "delta rule and experts": ("qwen3_next", FAMILIES["qwen3_next"].settings),
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
    "chunks": ("llama4_text", FAMILIES["llama4_text"].settings),
    "frequencies that switch": ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}}),
    "frequencies that grow": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "experts": ("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    "sinks": ("gpt_oss", FAMILIES["gpt_oss"].settings),
}  # fmt: skip
DTYPES = {(kind, dtype) for kind in KINDS for dtype in (torch.float32, torch.bfloat16)}
# latent attention is refused; the experts of JetMoe cannot be run without weights, which the plan says
APART = "deepseek_v3", "jetmoe"
KINDS |= {name: (name, row.settings) for name, row in FAMILIES.items() if name not in APART}
DTYPES |= {(kind, torch.float32) for kind in KINDS}
HERE = {kind: row for kind, row in KINDS.items() if row[0] in CONFIG_MAPPING}


def config_of(kind: str) -> Any:
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


def filled_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        output = model(text(2, tokens), use_cache=True)
    (cache,) = (value for value in output.values() if hasattr(value, "layers"))
    return sum(tensor.nbytes for tensor in tensors(cache, set()))


@pytest.mark.parametrize(("kind", "dtype"), sorted((row for row in DTYPES if row[0] in HERE), key=str), ids=str)
def test_kv_bytes_are_those_of_the_cache_that_the_model_fills(kind: str, dtype: torch.dtype) -> None:
    config = config_of(kind)
    shape = measure(build(config))
    job = Job(tokens=200, batch=2, dtype_bytes=dtype.itemsize, machine=MACHINES["cpu"], memory_bytes=2**34)
    assert kv_bytes(shape, job) == filled_bytes(config, 200, dtype)
    assert shape.caveat == ""


def test_at_least_the_kinds_of_the_oldest_release_are_here() -> None:
    assert len(HERE) > 30, sorted(set(KINDS) - set(HERE))


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
