"""CLIP as OpenAI and Long-CLIP name its weights: which there are, what transformers calls them, and what they compute.

The forward is written from the state dict alone, without transformers, so that a conversion can be held against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TABLE, TRAINED_TABLE = "positional_embedding", "positional_embedding_res"
# numbers about the model that OpenAI's files hold as tensors
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_SINGLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    TABLE: "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text_projection", "visual.proj")  # x @ w there, a Linear here
_TOWERS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a state dict say about its model: not how many heads there are (`geometry.py`)."""

    vocab: int
    positions: int
    projection: int
    image: int
    patch: int
    text_width: int
    text_inner: int
    text_layers: int
    vision_width: int
    vision_inner: int
    vision_layers: int

    def config(self, activation: str, text_heads: int, image_heads: int) -> Any:
        from transformers import CLIPConfig

        both = {"hidden_act": activation, "projection_dim": self.projection}
        return CLIPConfig(
            projection_dim=self.projection,
            text_config={
                **both,
                "vocab_size": self.vocab,
                "max_position_embeddings": self.positions,
                "hidden_size": self.text_width,
                "intermediate_size": self.text_inner,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": text_heads,
                "bos_token_id": self.vocab - 2,
                "eos_token_id": self.vocab - 1,  # the largest id, which this format pools at
            },
            vision_config={
                **both,
                "image_size": self.image,
                "patch_size": self.patch,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_inner,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": image_heads,
            },
        )


def tidy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what are no weights; layers kept as length and direction (geometric parametrisation) as plain weights."""
    kept = {name: tensor for name, tensor in state.items() if name not in _NOT_WEIGHTS}
    for name in [name for name in kept if name.endswith(".theta")]:
        layer = name.removesuffix(".theta")
        if f"{layer}.r" in kept:
            kept[f"{layer}.weight"] = kept.pop(f"{layer}.r") * F.normalize(kept.pop(name), dim=1)
    return kept


def sizes(state: Mapping[str, Tensor]) -> Sizes:
    """ValueError with what is missing or too much, where `state` is not exactly such a model."""
    if any(name.startswith("visual.layer") for name in state):
        raise ValueError(
            "the image tower is a ResNet, which transformers' CLIP does not have. Give a ViT model (B/32, B/16, L/14)."
        )
    layers = {old: 1 + max(_numbers(state, old), default=0) for old in _TOWERS}
    expected = set(names(layers))
    missing, unknown = expected - set(state), set(state) - expected - {TRAINED_TABLE}
    if missing or unknown:
        lists = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("has unknown", unknown)) if names]
        raise ValueError(
            f"this is not a whole CLIP in OpenAI's names: it {' and '.join(lists)}. Give Long-CLIP's own .pt or a "
            f"transformers folder, complete and unchanged."
        )
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    patch = state["visual.conv1.weight"].shape[-1]
    return Sizes(
        vocab=state["token_embedding.weight"].shape[0],
        positions=state[TABLE].shape[0],
        projection=state["text_projection"].shape[1],
        image=grid * patch,
        patch=patch,
        text_width=state["ln_final.weight"].shape[0],
        text_inner=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        text_layers=layers["transformer.resblocks"],
        vision_width=state["visual.ln_post.weight"].shape[0],
        vision_inner=state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        vision_layers=layers["visual.transformer.resblocks"],
    )


def names(layers: Mapping[str, int]) -> list[str]:
    """Every weight of a model with so many layers in each tower."""
    parts = [f"{part}.{kind}" for part in _IN_LAYER for kind in ("weight", "bias")]
    parts += ["attn.in_proj_weight", "attn.in_proj_bias"]
    return [*_SINGLE, *(f"{old}.{i}.{part}" for old, count in layers.items() for i in range(count) for part in parts)]


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names, and in the shapes, of transformers' CLIPModel."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _SINGLE:
            out[_SINGLE[name]] = tensor.T if name in _TRANSPOSED else tensor
            continue
        match = re.fullmatch(r"(.*resblocks)\.(\d+)\.(.+?)[._](weight|bias)", name)
        assert match, name  # `sizes` has looked at the names
        old, index, part, kind = match.groups()
        layer = f"{_TOWERS[old]}.{index}"
        if part == "attn.in_proj":
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}.self_attn.{letter}_proj.{kind}"] = piece
        else:
            out[f"{layer}.{_IN_LAYER[part]}.{kind}"] = tensor
    return out


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_transformers`."""
    out = {ours: state[theirs].T if ours in _TRANSPOSED else state[theirs] for ours, theirs in _SINGLE.items()}
    for ours, theirs in _TOWERS.items():
        for i in sorted(_numbers(state, theirs)):
            for kind in ("weight", "bias"):
                for part, name in _IN_LAYER.items():
                    out[f"{ours}.{i}.{part}.{kind}"] = state[f"{theirs}.{i}.{name}.{kind}"]
                pieces = [state[f"{theirs}.{i}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                out[f"{ours}.{i}.attn.in_proj_{kind}"] = torch.cat(pieces)
    return out


def encode_text(state: Mapping[str, Tensor], ids: Tensor, keep: int, activation: str, heads: int) -> Tensor:
    """Text embeddings of [batch, length] ids, before normalisation; both tables are read as Long-CLIP reads them."""
    length = ids.shape[1]
    first = (torch.arange(length) < keep)[:, None].float()
    table, trained = state[TABLE], state.get(TRAINED_TABLE, state[TABLE])
    x = state["token_embedding.weight"][ids] + table[:length] * first + trained[:length] * (1 - first)
    causal = torch.full((length, length), float("-inf")).triu(1)
    x = _blocks(state, "transformer.resblocks", x, causal, activation, heads)
    x = _norm(state, "ln_final", x)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]


def encode_image(state: Mapping[str, Tensor], pixels: Tensor, activation: str, heads: int) -> Tensor:
    """Image embeddings of [batch, 3, height, width] pixels, before normalisation."""
    weight = state["visual.conv1.weight"]
    x = F.conv2d(pixels, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = _blocks(state, "visual.transformer.resblocks", _norm(state, "visual.ln_pre", x), None, activation, heads)
    return _norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def _blocks(
    state: Mapping[str, Tensor], tower: str, x: Tensor, mask: Tensor | None, activation: str, heads: int
) -> Tensor:
    dim = x.shape[-1] // heads
    for i in range(1 + max(_numbers(state, tower))):
        at = f"{tower}.{i}"
        mixed = F.linear(
            _norm(state, f"{at}.ln_1", x), state[f"{at}.attn.in_proj_weight"], state[f"{at}.attn.in_proj_bias"]
        )
        q, k, v = (part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in mixed.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / dim**0.5
        read = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(read, state[f"{at}.attn.out_proj.weight"], state[f"{at}.attn.out_proj.bias"])
        inner = F.linear(_norm(state, f"{at}.ln_2", x), state[f"{at}.mlp.c_fc.weight"], state[f"{at}.mlp.c_fc.bias"])
        inner = inner * torch.sigmoid(1.702 * inner) if activation == "quick_gelu" else F.gelu(inner)
        x = x + F.linear(inner, state[f"{at}.mlp.c_proj.weight"], state[f"{at}.mlp.c_proj.bias"])
    return x


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _numbers(state: Mapping[str, Tensor], tower: str) -> set[int]:
    return {int(m[1]) for name in state if (m := re.match(re.escape(tower) + r"\.(\d+)\.", name))}


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
