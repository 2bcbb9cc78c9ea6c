"""Is the RoPE scaling of a GGUF file read, its keys and its table? Exits 1 if not, 0 if it is."""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

try:
    import gguf
except ImportError:
    print("needs gguf")
    sys.exit(3)
import numpy as np
from transformers import AutoConfig

WEIGHTS = {
    "token_embd": (61, 32), "output_norm": (32,), "output": (61, 32), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
    "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
    "blk.0.ffn_gate": (48, 32), "blk.0.ffn_up": (48, 32), "blk.0.ffn_down": (32, 48),
}  # fmt: skip


def write(path: Path, scaling: str) -> None:
    """A Llama of one layer."""
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(512)
    file.add_embedding_length(32)
    file.add_block_count(1)
    file.add_feed_forward_length(48)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(1e4)
    file.add_rope_dimension_count(8)
    file.add_vocab_size(61)
    if scaling == "linear":
        file.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        file.add_rope_scaling_factor(8.0)
    if scaling == "yarn":
        file.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        file.add_rope_scaling_factor(8.0)
        file.add_rope_scaling_orig_ctx_len(64)
    if scaling == "table":  # as Llama 3's
        file.add_tensor("rope_freqs.weight", np.array([1, 2, 4, 8], dtype=np.float32))
    file.add_tokenizer_model("gpt2")
    file.add_token_list([f"t{i}" for i in range(61)])
    file.add_token_merges([])
    file.add_token_types([1] * 61)
    for name, shape in WEIGHTS.items():
        file.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def defect() -> str | None:
    """The rope_type of a config that is read from each."""
    types = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for scaling in ("none", "linear", "yarn", "table"):
            write(Path(folder, f"{scaling}.gguf"), scaling)
            config = AutoConfig.from_pretrained(folder, gguf_file=f"{scaling}.gguf")
            types[scaling] = config.rope_parameters.get("rope_type")
    assert types["none"] == "default"
    lost = [scaling for scaling, kind in types.items() if scaling != "none" and kind == "default"]
    return f"read as not scaled: {', '.join(lost)}" if lost else None


if __name__ == "__main__":
    sys.exit(defect())
