"""CLIP as OpenAI and Long-CLIP name its weights: their list, their names in transformers, and a forward pass.

The forward uses the state dict alone, without transformers, so that a conversion can be compared with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import some

TABLE, TRAINED_TABLE = "positional_embedding", "positional_embedding_res"
# numbers about the model, which OpenAI's files hold as tensors
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
_IN_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_IN_LAYER |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a model that the shapes of its state dict show; the heads are not among them (`geometry.py`)."""

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
        """A CLIPConfig of these sizes."""
        from transformers import CLIPConfig

        def tower(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
            sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
            return {**sizes, "num_attention_heads": heads, "hidden_act": activation, "projection_dim": self.projection}

        text = tower(self.text_width, self.text_inner, self.text_layers, text_heads)
        text |= {"vocab_size": self.vocab, "max_position_embeddings": self.positions}
        # this format pools at the largest id
        text |= {"bos_token_id": self.vocab - 2, "eos_token_id": self.vocab - 1}
        vision = tower(self.vision_width, self.vision_inner, self.vision_layers, image_heads)
        vision |= {"image_size": self.image, "patch_size": self.patch}
        return CLIPConfig(projection_dim=self.projection, text_config=text, vision_config=vision)


def tidy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone; layers stored as length and direction (geometric parametrisation) become plain weights."""
    kept = {name: tensor for name, tensor in state.items() if name not in _NOT_WEIGHTS}
    for name in [name for name in kept if name.endswith(".theta")]:
        layer = name.removesuffix(".theta")
        if f"{layer}.r" in kept:
            kept[f"{layer}.weight"] = kept.pop(f"{layer}.r") * F.normalize(kept.pop(name), dim=1)
    return kept


def sizes(state: Mapping[str, Tensor]) -> Sizes:
    """The sizes of a state dict; a ValueError lists missing and unknown names unless it is exactly such a model."""
    if any(name.startswith("visual.layer") for name in state):
        raise ValueError(
            "the image tower is a ResNet, which transformers' CLIP does not have. Give a ViT model (B/32, B/16, L/14)."
        )
    layers = {old: _layers(state, old) for old in _TOWERS}
    expected = {name for name, _ in _renamed(layers)}
    missing, unknown = expected - set(state), set(state) - expected - {TRAINED_TABLE}
    if missing or unknown:
        raise ValueError(
            f"this is not a whole CLIP in OpenAI's names: it {differences(missing, unknown)}. Give Long-CLIP's own .pt "
            f"or a transformers folder, complete and unchanged."
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


def differences(missing: set[str], unknown: set[str]) -> str:
    """The names that a state dict lacks, and those that it has beyond the expected ones."""
    lists = (("lacks", missing), ("has unknown", unknown))
    return " and ".join(f"{word} {some(sorted(names))}" for word, names in lists if names)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names, and in the shapes, of transformers' CLIPModel."""
    out: dict[str, Tensor] = {}
    for old, new in _renamed({old: _layers(state, old) for old in _TOWERS}):
        tensor = state[old].T if old in _TRANSPOSED else state[old]
        out |= zip(new, tensor.chunk(3), strict=True) if len(new) == 3 else {new[0]: tensor}
    return out


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_transformers`."""
    out: dict[str, Tensor] = {}
    for old, new in _renamed({old: _layers(state, new) for old, new in _TOWERS.items()}):
        tensor = torch.cat([state[name] for name in new]) if len(new) == 3 else state[new[0]]
        out[old] = tensor.T if old in _TRANSPOSED else tensor
    return out


def _renamed(layers: Mapping[str, int]) -> Iterator[tuple[str, list[str]]]:
    """Every weight of a model with these layers in its towers, and its names in transformers: one, or q, k and v."""
    for old, new in _SINGLE.items():
        yield old, [new]
    for tower, count in layers.items():
        for i, kind in itertools.product(range(count), ("weight", "bias")):
            old, new = f"{tower}.{i}", f"{_TOWERS[tower]}.{i}"
            for part, name in _IN_LAYER.items():
                yield f"{old}.{part}.{kind}", [f"{new}.{name}.{kind}"]
            yield f"{old}.attn.in_proj_{kind}", [f"{new}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]


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
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}weight"], state[f"{name}bias"])

    dim = x.shape[-1] // heads
    for i in range(_layers(state, tower)):
        at = f"{tower}.{i}"
        mixed = linear(f"{at}.attn.in_proj_", _norm(state, f"{at}.ln_1", x))
        q, k, v = (part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in mixed.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / dim**0.5
        read = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(f"{at}.attn.out_proj.", read)
        inner = linear(f"{at}.mlp.c_fc.", _norm(state, f"{at}.ln_2", x))
        inner = inner * torch.sigmoid(1.702 * inner) if activation == "quick_gelu" else F.gelu(inner)
        x = x + linear(f"{at}.mlp.c_proj.", inner)
    return x


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    numbers = (re.match(re.escape(tower) + r"\.(\d+)\.", name) for name in state)
    return 1 + max((int(found[1]) for found in numbers if found), default=0)
