"""A GGUF file's RoPE scaling: the converted model against the stock one that the file was written from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
import numpy as np
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoModelForCausalLM, Gemma4TextConfig, LlamaConfig

from hf_longctx.hub import convert
from hf_longctx.hub.gguf import read_gguf_config
from hf_longctx.hub.gguf_rope import FileRope, with_file_rope
from hf_longctx.upstream.versions import LONGROPE_PER_LAYER
from tests.hub.stock_gguf import HEAD_DIM, THETA, TRAINED, stock, write

ORIGINAL = 64
Meta = Callable[[GGUFWriter], object]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHORT, LONG = (np.linspace(1.0, top, HEAD_DIM // 2).astype(np.float32) for top in (1.5, 6.0))
ANY = np.array([1, 1, 1.5, 3, 2, 7, 9, 4], dtype=np.float32)


def says(kind: RopeScalingType | None, factor: float | None = None, original: int | None = None, **more: float) -> Meta:
    """What writes a scaling into a file; `more` are its other settings by their names."""

    def meta(writer: GGUFWriter) -> None:
        if kind is not None:
            writer.add_rope_scaling_type(kind)
        if factor is not None:
            writer.add_rope_scaling_factor(factor)
        if original is not None:
            writer.add_rope_scaling_orig_ctx_len(original)
        for name, value in more.items():
            writer.add_float32(f"{writer.arch}.rope.scaling.{name}", value)

    return meta


def llama3_divisors(
    factor: float, low: float, high: float, original: int, dim: int = HEAD_DIM, theta: float = THETA
) -> Any:
    """llama.cpp's converter (conversion/llama.py, generate_extra_tensors), in its own steps."""
    found = []
    for freq in 1.0 / theta ** (np.arange(0, dim, 2) / dim):
        wavelen = 2 * math.pi / freq
        if wavelen < original / high:
            found.append(1.0)
        elif wavelen > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelen - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def static(divisors: Any, attention: float = 1.0) -> dict[str, Any]:
    table = [float(value) for value in divisors]
    return {"rope_type": "longrope", "factor": 1.0, "attention_factor": attention, "short_factor": table,
            "long_factor": table, "original_max_position_embeddings": TRAINED}  # fmt: skip


def longrope(attention: float | None = None) -> dict[str, Any]:
    own = {} if attention is None else {"attention_factor": attention}
    return {"rope_type": "longrope", "short_factor": SHORT.tolist(), "long_factor": LONG.tolist(),
            "original_max_position_embeddings": ORIGINAL, **own}  # fmt: skip


TABLES = {"rope_factors_short": SHORT, "rope_factors_long": LONG}
LONGROPE_ATTENTION = math.sqrt(1 + math.log(TRAINED / ORIGINAL) / math.log(ORIGINAL))
# what the file is: family, the stock model's rope_parameters, metadata, tensors
KINDS: dict[str, tuple[str, dict[str, Any], Meta, dict[str, Any]]] = {
    "nothing": ("llama", {"rope_type": "default"}, says(None), {}),
    "none, with a factor": ("llama", {"rope_type": "default"}, says(RopeScalingType.NONE, 4.0), {}),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, says(RopeScalingType.LINEAR, 4.0), {}),
    "a factor without a type": ("qwen2", {"rope_type": "linear", "factor": 2.5}, says(None, 2.5), {}),
    "linear under its old key": (
        "llama", {"rope_type": "linear", "factor": 4.0}, lambda w: w.add_float32("llama.rope.scale_linear", 4.0), {}),
    "yarn": ("llama", YARN, says(RopeScalingType.YARN, 4.0, ORIGINAL), {}),
    "yarn, of another family": ("qwen2", YARN, says(RopeScalingType.YARN, 4.0, ORIGINAL), {}),
    "yarn without its original length": (
        "llama", {**YARN, "original_max_position_embeddings": TRAINED}, says(RopeScalingType.YARN, 4.0), {}),
    "yarn with an attention factor": (
        "qwen2", {**YARN, "attention_factor": 1.3},
        says(RopeScalingType.YARN, 4.0, ORIGINAL, yarn_attn_factor=1.3), {}),
    "yarn with its usual attention factor": (
        "llama", YARN, says(RopeScalingType.YARN, 4.0, ORIGINAL, attn_factor=0.1 * math.log(4) + 1), {}),
    "yarn with ramps": (
        "llama", {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        says(RopeScalingType.YARN, 4.0, ORIGINAL, yarn_beta_fast=16.0, yarn_beta_slow=2.0, yarn_ext_factor=1.0), {}),
    "yarn with mscale": (
        "llama", {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        says(RopeScalingType.YARN, 4.0, ORIGINAL, yarn_log_multiplier=0.5), {}),
    "llama3": ("llama", {**LLAMA3, "factor": 8.0}, says(None), {"rope_freqs": llama3_divisors(8, 1, 4, 64)}),
    "llama3 with its original length": (
        "llama", {**LLAMA3, "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 8.0}
        | {"original_max_position_embeddings": 128},
        says(None, original=128), {"rope_freqs": llama3_divisors(8, 2, 8, 128)}),
    "other factors of frequencies": ("llama", static(ANY), says(None), {"rope_freqs": ANY}),
    "factors of frequencies and linear": (
        "llama", static(2 * ANY), says(RopeScalingType.LINEAR, 2.0), {"rope_freqs": ANY}),
    "equal factors of frequencies": (
        "llama", {"rope_type": "linear", "factor": 3.0}, says(None), {"rope_freqs": np.full(8, 3, np.float32)}),
    "factors that are all 1": ("llama", {"rope_type": "default"}, says(None), {"rope_freqs": np.ones(8, np.float32)}),
    "linear with an attention factor": (
        "llama", static(np.full(8, 4.0), 1.2), says(RopeScalingType.LINEAR, 4.0, attn_factor=1.2), {}),
    "longrope": ("phi3", longrope(), says(None, original=ORIGINAL, attn_factor=LONGROPE_ATTENTION), TABLES),
    "longrope with its type": ("phi3", longrope(), says(RopeScalingType.LONGROPE, original=ORIGINAL), TABLES),
    "longrope with an attention factor": (
        "phi3", longrope(1.5), says(None, original=ORIGINAL, attn_factor=1.5), TABLES),
    "linear in full layers alone": (
        "gemma3_text", {"rope_type": "linear", "factor": 8.0}, says(RopeScalingType.LINEAR, 8.0), {}),
    "yarn in full layers alone": ("gemma3_text", YARN, says(RopeScalingType.YARN, 4.0, ORIGINAL), {}),
    "factors in full layers alone": ("gemma3_text", static(ANY), says(None), {"rope_freqs": ANY}),
}  # fmt: skip


def converted(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        convert(file, cache_dir=file.parent / "kept"), dtype=torch.float32
    ).eval()


@torch.no_grad()
def logits(model: Any, tokens: int) -> torch.Tensor:
    return model(torch.arange(tokens)[None] % 256, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_file_gives_the_stock_model_it_was_written_from(kind: str, tmp_path: Path) -> None:
    family, rope, meta, tensors = KINDS[kind]
    if rope["rope_type"] == "longrope" and family == "gemma3_text" and not LONGROPE_PER_LAYER:
        pytest.skip("this transformers has no longrope for each kind of layer; the refusal is tested below")
    model = stock(family, rope)
    ours = converted(write(model, tmp_path / "model.gguf", meta, tensors))
    for tokens in (ORIGINAL // 2, 3 * ORIGINAL):  # longrope switches in between
        torch.testing.assert_close(logits(ours, tokens), logits(model, tokens), rtol=0, atol=1e-5)
    if rope["rope_type"] != "default":
        plain = stock(family, {"rope_type": "default"})
        assert (logits(ours, 3 * ORIGINAL) - logits(plain, 3 * ORIGINAL)).abs().max() > 0.1
    parameters = ours.config.rope_parameters
    assert (parameters.get("full_attention") or parameters)["rope_type"] == rope["rope_type"]
    if "sliding_attention" in parameters:
        assert parameters["sliding_attention"] == model.config.rope_parameters["sliding_attention"]


def test_rotated_dims_and_bases_are_the_file_s(tmp_path: Path) -> None:
    half = stock("phi3", {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 500.0})
    ours = converted(write(half, tmp_path / "half.gguf", dimensions=HEAD_DIM // 2))
    assert torch.equal(logits(ours, 100), logits(half, 100))
    short = {"short_factor": SHORT[:4].tolist(), "long_factor": LONG[:4].tolist()}
    both = stock("phi3", {**longrope(), **short, "partial_rotary_factor": 0.5})
    tables = {name: table[:4] for name, table in TABLES.items()}
    file = write(both, tmp_path / "both.gguf", says(None, original=ORIGINAL), tables, dimensions=HEAD_DIM // 2)
    assert torch.equal(logits(converted(file), 100), logits(both, 100))


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64), (32.0, 128), (16.0, 128)])
def test_llama_3_s_own_fields_are_found_again(factor: float, head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, num_hidden_layers=1, intermediate_size=8, vocab_size=16,
        max_position_embeddings=131072, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    divisors = llama3_divisors(factor, 1, 4, 8192, head_dim, 500000.0)
    fields = {"rope.freq_base": 500000.0, "rope.dimension_count": head_dim}
    found = with_file_rope(config, FileRope("llama", fields, {"rope_freqs.weight": divisors})).rope_parameters
    assert found == {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    with_length = {**fields, "rope.scaling.original_context_length": 4096}
    again = with_file_rope(config, FileRope("llama", with_length, {"rope_freqs.weight": divisors})).rope_parameters
    assert (again["original_max_position_embeddings"], again["low_freq_factor"], again["high_freq_factor"]) == (
        4096,
        0.5,
        2.0,
    )


REFUSED: dict[str, tuple[str, Meta, dict[str, Any], str]] = {
    "unknown type": (
        "llama", lambda w: w.add_string("llama.rope.scaling.type", "spiral"), {}, r"rope\.scaling\.type: 'spiral'"),
    "unknown setting": ("llama", says(RopeScalingType.YARN, 4.0, 64, twist=2.0), {}, r"llama\.rope\.scaling\.twist: 2"),
    "alpha": ("llama", says(None, alpha=1000.0), {}, r"rope\.scaling\.alpha"),
    "factor below 0": ("llama", says(RopeScalingType.LINEAR, -4.0), {}, r"rope\.scaling\.factor: -4"),
    "yarn half extrapolated": (
        "llama", says(RopeScalingType.YARN, 4.0, 64, yarn_ext_factor=0.5), {}, r"yarn_ext_factor: 0\.5"),
    "yarn with a factor of two meanings": (
        "llama", says(RopeScalingType.YARN, 4.0, 64, attn_factor=1.5), {}, r"rope\.scaling\.attn_factor: 1\.5"),
    "yarn and factors": (
        "llama", says(RopeScalingType.YARN, 4.0, 64), {"rope_freqs": ANY}, r"rope_freqs\.weight: .*yarn"),
    "yarn in a family without": ("phi3", says(RopeScalingType.YARN, 4.0, 64), {}, "Phi3Config does not take 'yarn'"),
    "too few factors": ("llama", says(None), {"rope_freqs": ANY[:5]}, "5 factors for 8 frequencies"),
    "factors of 0": ("llama", says(None), {"rope_freqs": ANY * 0}, r"rope_freqs\.weight: its factors are not all"),
    "one table of two": ("phi3", says(None, original=64), {"rope_factors_long": LONG}, r"rope_factors_long\.weight: "),
    "longrope without tables": ("llama", says(RopeScalingType.LONGROPE), {}, "no short and long factors"),
    "longrope without its length": ("phi3", says(None), TABLES, r"original_context_length, where it switches"),
    "longrope and linear": ("phi3", says(RopeScalingType.LINEAR, 4.0, 64), TABLES, "with another scaling"),
    "tables and factors": ("phi3", says(None, original=64), {**TABLES, "rope_freqs": ANY}, "with another scaling"),
    "another base for sliding layers": (
        "llama", lambda w: w.add_float32("llama.rope.freq_base_swa", 77.0), {}, r"freq_base_swa: LlamaConfig has one"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    family, meta, tensors, words = REFUSED[kind]
    file = write(stock(family, {"rope_type": "default"}), tmp_path / "model.gguf", meta, tensors)
    with pytest.raises(ValueError, match=words) as caught:
        convert(file, cache_dir=tmp_path / "kept")
    assert str(caught.value).endswith("Load the original checkpoint, not its GGUF file.")
    assert "model.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "kept").glob("*"))


def test_factors_for_one_kind_of_layer_are_refused_where_transformers_cannot_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_longctx.hub.gguf_rope.LONGROPE_PER_LAYER", False)
    model = stock("gemma3_text", {"rope_type": "default"})
    with pytest.raises(ValueError, match=r"rope_freqs\.weight: .*transformers 5\.21"):
        convert(write(model, tmp_path / "model.gguf", tensors={"rope_freqs": ANY}), cache_dir=tmp_path / "kept")


def test_a_family_that_knows_its_scaling_keeps_it(tmp_path: Path) -> None:
    """Gemma 4 stops most frequencies of its full-attention layers: a tensor in the file, a type in transformers."""
    config = Gemma4TextConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=260, head_dim=16,
        global_head_dim=32, layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=260,
        hidden_size_per_layer_input=8, num_kv_shared_layers=0,
    )  # fmt: skip
    stopped = np.array([1.0] * 4 + [1e30] * 12, dtype=np.float32)
    fields = {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "rope.dimension_count": 32}
    file = FileRope("gemma4", fields, {"rope_freqs.weight": stopped})
    assert with_file_rope(config, file).rope_parameters == config.rope_parameters
    with pytest.raises(ValueError, match=r"gemma4\.rope\.scaling|rope_freqs\.weight"):
        with_file_rope(config, FileRope("gemma4", {**fields, "rope.scaling.factor": 2.0}, file.tensors))


def test_a_config_that_transformers_cannot_read_is_refused_with_what_the_file_says(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "odd.gguf", "no-such-model")
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"odd\.gguf'.*'no-such-model' with rope\.scaling\.type='yarn'"):
        read_gguf_config(tmp_path / "odd.gguf")
