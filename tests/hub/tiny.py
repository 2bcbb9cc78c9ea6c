"""A GGUF file of a two-layer Llama, as llama.cpp's converter would write it: small enough to make in every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers.convert_slow_tokenizer import bytes_to_unicode

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, TRAINED = 64, 4, 2, 96, 2, 128
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# "00" and "07" are merges that a digit-by-digit pre-tokenizer must never let happen.
MERGES = [("0", "0"), ("0", "7"), ("h", "e"), ("l", "l")]


def write_gguf(path: Path, *, pre: str = "smollm", seed: int = 0, **extra: int) -> Path:
    """Write the file with Q4_1 weights; `extra` are more whole numbers for its metadata, by key with `__` for a dot."""
    rng = np.random.default_rng(seed)
    tokens = [*SPECIAL, *bytes_to_unicode().values(), *(a + b for a, b in MERGES)]
    writer = GGUFWriter(path, "llama")
    writer.add_name("A Name Nobody Loads")
    writer.add_block_count(LAYERS)
    writer.add_context_length(TRAINED)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges([f"{a} {b}" for a, b in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra.items():
        writer.add_uint32(key.replace("__", "."), value)

    def add(name: str, *shape: int) -> None:
        data = rng.standard_normal(shape, dtype=np.float32) * 0.1
        if len(shape) == 1:
            writer.add_tensor(name, data + 1)
        else:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)

    kv = HIDDEN * KV_HEADS // HEADS
    add("token_embd.weight", len(tokens), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        add(f"blk.{layer}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.attn_k.weight", kv, HIDDEN)
        add(f"blk.{layer}.attn_v.weight", kv, HIDDEN)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", FFN, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", FFN, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, FFN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
