"""Random weights in the geometry of real models whose attention has sinks, a cap or latent keys, and tiny ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .reading import K


@dataclass(frozen=True)
class Sizes:
    """How much is read, written and compared.

    Args:
        read: Tokens of the prompt.
        early: Tokens after which the cache is looked at first.
        write: Tokens written after the prompt.
        watched: Tokens at both ends of the writing whose memory and time are measured.
        text: Tokens of the text whose logits are compared; more than the window.
        n_global: The first tokens that stay visible.
        n_local: The window.
    """

    read: int = 64 * K
    early: int = 8 * K
    write: int = 4 * K
    watched: int = 64
    text: int = 4 * K + 512
    n_global: int = 10
    n_local: int = 4 * K


FULL = Sizes()
TINY = Sizes(read=96, early=48, write=24, watched=4, text=40, n_global=4, n_local=16)


@dataclass(frozen=True)
class Geometry:
    """A model's sizes, and what its attention does besides a softmax.

    Args:
        name: The model whose config the numbers are from.
        family: transformers' name of the architecture.
        settings: The config.
        tiny: What a tiny model has instead.
        chunk: Tokens read at once: eager attention of stock sliding layers forms all scores of a chunk.
        heads: Of queries, and of keys and values.
        dims: Of keys, and of values.
        sharpen: The queries' weights are multiplied by it: the scores of random weights hardly differ, and attention
            that averages thousands of values hides every mistake.
        softcap: The cap of the attention's scores.
        sinks: Does the softmax have a learned sink per head?
    """

    name: str
    family: str
    settings: dict[str, Any]
    tiny: dict[str, Any]
    chunk: int
    heads: tuple[int, int]
    dims: tuple[int, int]
    sharpen: float = 2.0
    softcap: float | None = None
    sinks: bool = False

    def config(self, tiny: bool) -> Any:
        """The config; nothing ends a text."""
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return AutoConfig.for_model(self.family, **self.settings | ends | (self.tiny if tiny else {}))


_SMALL = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}
_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
GEOMETRIES = {
    "gpt_oss": Geometry(
        name="gpt-oss-20b",
        family="gpt_oss",
        settings={
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "max_position_embeddings": 128 * K,
            "rope_parameters": _YARN | {"factor": 32.0, "rope_theta": 150000.0, "truncate": False},
        },
        tiny=_SMALL
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
        chunk=2 * K,
        heads=(64, 8),
        dims=(64, 64),
        sinks=True,
    ),
    "gemma2": Geometry(
        name="Gemma 2 9B",
        family="gemma2",
        settings={
            "vocab_size": 256000,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 8 * K,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        tiny=_SMALL
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}
        | {"sliding_window": 8, "attn_logit_softcapping": 2.0},
        chunk=4 * K,
        heads=(16, 8),
        dims=(256, 256),
        softcap=50.0,
    ),
    "deepseek_v2": Geometry(
        name="DeepSeek-V2-Lite",
        family="deepseek_v2",
        settings={
            "vocab_size": 102400,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "first_k_dense_replace": 1,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1408,
            "max_position_embeddings": 160 * K,
            "rope_parameters": _YARN
            | {"factor": 40.0, "rope_theta": 10000.0, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        tiny=_SMALL
        | {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16}
        | {"qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 24},
        chunk=8 * K,
        heads=(16, 16),
        dims=(192, 128),
        sharpen=4.0,
    ),
    "llama": Geometry(  # neither sinks nor a cap: what the others are compared with
        name="Llama 3 8B",
        family="llama",
        settings={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8 * K,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        tiny=_SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2},
        chunk=8 * K,
        heads=(32, 8),
        dims=(128, 128),
    ),
}


@torch.no_grad()
def build(geometry: Geometry, sizes: Sizes, device: str, dtype: torch.dtype) -> Any:
    """A model of random weights, made on the device: unequal norms, sharpened scores, sinks that take about half."""
    torch.manual_seed(0)
    config = geometry.config(sizes is TINY)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif name.endswith("q_proj.weight"):
            parameter.mul_(geometry.sharpen)
    for module in model.modules():
        if isinstance(getattr(module, "sinks", None), torch.nn.Parameter):
            keys = getattr(module, "sliding_window", None) or sizes.n_local
            module.sinks.normal_(mean=math.log(keys), std=1.0)
    return model


@torch.no_grad()
def equal_experts(model: Any) -> bool:
    """Give all experts of a layer the weights of its first one; False if the model has none.

    Rounding then may choose other experts, as it does wherever two are about as good, and changes nothing by that.
    """
    found = [parameter for name, parameter in model.named_parameters() if ".experts." in name and parameter.ndim > 1]
    for parameter in found:
        parameter[1:] = parameter[:1].clone()
    return bool(found)
