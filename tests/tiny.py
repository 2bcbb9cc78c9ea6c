"""Tiny models in memory. Larger weights than usual: attention is far from uniform, and logits are O(3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCAB, PAD, BOS, EOS = 61, 0, 1, 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,  # generation runs to max_new_tokens
    "tie_word_embeddings": True,
}
GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
    "full_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def config_of(family: str, **changes: Any) -> Any:
    more: dict[str, Any] = {**SIZES, **changes}
    if family == "llama":
        return LlamaConfig(**more)
    if family == "qwen3":
        return Qwen3Config(**{"head_dim": 8, **more})
    if family == "mistral":
        return MistralConfig(**{"sliding_window": None, **more})
    if family == "smollm3":
        return SmolLM3Config(**{"no_rope_layer_interval": 2, **more})
    if family == "gpt_neox":
        more.pop("num_key_value_heads")
        return GPTNeoXConfig(**{"rotary_pct": 0.5, **more})
    assert family == "gemma3"
    types = ["sliding_attention", "full_attention", "sliding_attention"][: more["num_hidden_layers"]]
    own = {"head_dim": 8, "layer_types": types, "sliding_window": 8, "rope_parameters": GEMMA_ROPE}
    return Gemma3TextConfig(**{**own, "query_pre_attn_scalar": 8, **more})


CLASSES: dict[str, Any] = {
    "llama": LlamaForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "gemma3": Gemma3ForCausalLM,
    "mistral": MistralForCausalLM,
    "smollm3": SmolLM3ForCausalLM,
    "gpt_neox": GPTNeoXForCausalLM,
}
FAMILIES = ("llama", "qwen3", "gemma3")
MORE_FAMILIES = ("mistral", "smollm3", "gpt_neox")  # no window; a layer without RoPE; half-rotary and no GQA


def tiny(family: str = "llama", seed: int = 0, attn_implementation: str = "sdpa", **changes: Any) -> Any:
    """A tiny causal language model with fixed weights; the global random state is left alone."""
    return build(CLASSES[family], config_of(family, **changes), seed, attn_implementation)


def build(cls: Any, config: Any, seed: int = 0, attn_implementation: str | None = None) -> Any:
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
    return sharpen(model).eval()


def sharpen(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 8
    return model


def text(batch: int = 1, length: int = 24, seed: int = 0) -> Tensor:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one left-padded batch: ids and attention mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w3 ... w60, one token each."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, **{f"w{i}": i for i in range(3, VOCAB)}}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **tokens)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    return model(ids, **kwargs).logits


def logits_in_parts(model: Any, ids: Tensor, ends: Sequence[int], cache: Any, mask: Tensor | None = None) -> Tensor:
    """Logits of a text that is given up to each of these ends, one after the other, with what is cached before."""
    parts = []
    for start, stop in pairwise((0, *ends)):
        seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
        parts.append(logits_of(model, ids[:, start:stop], past_key_values=cache, **seen))
    return torch.cat(parts, 1)


def greedy_uncached(model: Any, ids: Tensor, steps: int) -> Tensor:
    """Greedy decoding by a full forward for every token: the definition that cached generation must meet."""
    for _ in range(steps):
        ids = torch.cat([ids, logits_of(model, ids, use_cache=False)[:, -1:].argmax(-1)], 1)
    return ids


MakeModel = Callable[..., Any]
