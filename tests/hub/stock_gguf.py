"""A stock model of transformers as the GGUF file that llama.cpp's converter would make of it, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

HEADS, HEAD_DIM, TRAINED, THETA = 4, 16, 512, 10000.0
WORDS = [*bytes_to_unicode().values(), "<s>", "</s>", "\u0120a", "\u0120b"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "tie_word_embeddings": False,
}
# transformers' model type: llama.cpp's architecture, settings
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "phi3": ("phi3", {}),
    "gemma3_text": (
        "gemma3",
        {"head_dim": HEAD_DIM, "num_hidden_layers": 6, "sliding_window": 64, "tie_word_embeddings": True},
    ),
}


def stock(family: str, rope: dict[str, Any], **more: Any) -> Any:
    """A tiny model whose weights bfloat16 holds, as a conversion does; `rope` is of its full-attention layers."""
    config = AutoConfig.for_model(family, **{**SIZES, **ARCHITECTURES[family][1], **more})
    parameters = dict(config.rope_parameters)
    entry = {"rope_theta": THETA, **rope}
    if hasattr(config, "original_max_position_embeddings"):  # Phi 3: comes before that of rope_parameters
        config.original_max_position_embeddings = rope.get("original_max_position_embeddings", TRAINED)
    nested = "full_attention" in parameters
    fields = {**config.to_dict(), "rope_parameters": {**parameters, "full_attention": entry} if nested else entry}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(type(config)(**fields))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()


def write(
    model: Any,
    path: Path,
    meta: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    tensors: dict[str, np.ndarray] | None = None,
    dimensions: int | None = None,
) -> Path:
    """Write `model`; `meta` and `tensors` (by name without `.weight`) are what the file says of its RoPE scaling."""
    config = model.config
    name = ARCHITECTURES[config.model_type][0]
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base((config.rope_parameters.get("full_attention") or config.rope_parameters)["rope_theta"])
    writer.add_rope_dimension_count(dimensions or HEAD_DIM)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "head_dim", None) is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None) is not None:
        writer.add_sliding_window(config.sliding_window)
    meta(writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))  # Gemma's tokenizers ask for them
    writer.add_token_merges(["\u0120 a", "\u0120 b"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(257)

    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):  # llama.cpp rotates neighbours in this family
            heads = len(array) // HEAD_DIM
            array = array.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if name == "gemma3" and "norm" in key:
            array = array + 1
        module, _, kind = key.rpartition(".")
        writer.add_tensor(f"{names.get_name(module)}.{kind}", np.ascontiguousarray(array))
    for key, value in (tensors or {}).items():
        writer.add_tensor(f"{key}.weight", np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
