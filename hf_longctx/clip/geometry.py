"""The number of heads of a CLIP in OpenAI's names, which no tensor shows, and its activation.

From the config beside the weights, or from published sizes; never from a width alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .checks import read_json
from .openai import Sizes

OPENCLIP_CONFIG = "open_clip_config.json"
ACTIVATIONS = ("quick_gelu", "gelu")
_UNCHANGED = "Give an unchanged folder."


class Heads(NamedTuple):
    """Attention heads of the two towers."""

    text: int
    image: int


# (width, layers) to heads, of OpenAI's models and OpenCLIP's model_configs
_TEXT = {(256, 10): 4, (384, 12): 6, (512, 12): 8, (640, 12): 10, (768, 12): 12}
_TEXT |= {(1024, 12): 16, (1024, 24): 16, (1280, 32): 20, (1280, 36): 20}
_OPENAI = {(768, 12): 12, (1024, 24): 16}  # ViT-B and L
_IMAGE = _OPENAI | {
    (384, 12): 6,  # ViT-S
    (512, 12): 8,  # M
    (896, 12): 14,  # B-plus
    (1280, 32): 16,  # H, heads of 80
    (1408, 40): 16,  # g, of 88
    (1664, 48): 16,  # bigG, of 104
    (1792, 56): 16,  # e, of 112
}
# OpenCLIP's fields that agree with CLIP; others change its computation without any trace in the tensors
_SIZES = ("image_size", "layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "context_length")
_NO_MATTER = (*_SIZES, "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "patch_dropout")
_AS_CLIP = {"pool_type": ("tok", "argmax"), "proj_type": ("linear",), "pos_embed_type": ("learnable",)}


class Configured(NamedTuple):
    """Heads and activation (None if missing) by a config file."""

    heads: Heads
    activation: str | None
    file: str


def known(sizes: Sizes) -> tuple[int | None, int | None]:
    """Heads of the text and the image tower by the published sizes; None if there is no such model."""
    text, image = (sizes.text_width, sizes.text_layers), (sizes.vision_width, sizes.vision_layers)
    return _TEXT.get(text), _IMAGE.get(image)


def heads_of(sizes: Sizes, given: tuple[int, int] | None, config: Configured | None) -> Heads:
    """The heads that were given, else those of the config, else those of the published model of this size.

    ValueError where none is known, two contradict each other, or they do not divide their tower.
    """
    if given is not None:
        if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(type(n) is int and n > 0 for n in given):
            raise ValueError(f"heads={given!r}: expected those of the text tower and of the image tower: (16, 16).")
        if config is not None and tuple(given) != config.heads:
            raise ValueError(
                f"heads={tuple(given)}: {config.file} beside the weights says {tuple(config.heads)}. Leave heads out, "
                f"or remove the config if it is of another model."
            )
        chosen = Heads(*given)
    elif config is not None:
        chosen = config.heads
    else:
        text, image = known(sizes)
        if text is None or image is None:
            towers = []
            if text is None:
                towers.append(f"text tower of {sizes.text_width} channels in {sizes.text_layers} layers")
            if image is None:
                towers.append(f"image tower of {sizes.vision_width} channels in {sizes.vision_layers} layers")
            raise ValueError(
                f"no published CLIP has this: {' and '.join(towers)}; and no weight shows its number of heads. "
                f"Give the heads, text and image: heads=(16, 16) (--heads 16,16), or put the model's {OPENCLIP_CONFIG} "
                f"beside the weights."
            )
        chosen = Heads(text, image)
    for name, heads, width in (("text", chosen.text, sizes.text_width), ("image", chosen.image, sizes.vision_width)):
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the {width} channels of the {name} tower. Give its own.")
    return chosen


def activation_of(sizes: Sizes, given: str | None, config: Configured | None) -> str:
    """As `heads_of`. OpenAI's is the default, except for sizes of which OpenCLIP alone has models, with either."""
    if given is not None and given not in ACTIVATIONS:
        raise ValueError(
            f"activation={given!r}: expected quick_gelu (OpenAI's, Long-CLIP's) or gelu (most of OpenCLIP's)."
        )
    if config is not None and config.activation is not None:
        if given not in (None, config.activation):
            raise ValueError(f"activation={given!r}: {config.file} beside the weights says {config.activation}.")
        return config.activation
    size = sizes.vision_width, sizes.vision_layers
    if given is None and size in _IMAGE and size not in _OPENAI:
        raise ValueError(
            f"OpenCLIP has models of this size ({size[0]} channels, {size[1]} layers) with either activation. Give it: "
            f"activation='gelu' (--activation gelu, as of LAION's), or quick_gelu (names that end in quickgelu)."
        )
    return given or "quick_gelu"


def from_openclip_config(folder: Path, sizes: Sizes) -> Configured | None:
    """Heads and activation by the OpenCLIP config in a folder; None without one.

    ValueError if it belongs to another model, or to one that transformers' CLIP does not compute.
    """
    path = folder / OPENCLIP_CONFIG
    if not path.is_file():
        return None
    config = read_json(path, _UNCHANGED)
    config = config.get("model_cfg", config)
    text, image = ({**(config.get(part) or {})} for part in ("text_cfg", "vision_cfg"))
    _check_same(
        OPENCLIP_CONFIG,
        {
            "embed_dim": (config.get("embed_dim", sizes.projection), sizes.projection),
            "text_cfg.width": (text.get("width", 512), sizes.text_width),
            "text_cfg.layers": (text.get("layers", 12), sizes.text_layers),
            "text_cfg.vocab_size": (text.get("vocab_size", 49408), sizes.vocab),
            "vision_cfg.width": (image.get("width", 768), sizes.vision_width),
            "vision_cfg.layers": (image.get("layers", 12), sizes.vision_layers),
            "vision_cfg.patch_size": (image.get("patch_size", 16), sizes.patch),
        },
    )
    for part, fields in (("text_cfg", text), ("vision_cfg", image)):
        for key, value in fields.items():
            if key in _NO_MATTER or value in (None, False, {}, *_AS_CLIP.get(key, ())):
                continue
            raise ValueError(
                f"{OPENCLIP_CONFIG}: {part}.{key}={value!r} is unknown to transformers' CLIP, so these weights would "
                f"give other embeddings there. Read them with OpenCLIP."
            )
    heads = Heads(text.get("heads", 8), sizes.vision_width // image.get("head_width", 64))  # OpenCLIP's defaults
    return Configured(heads, "quick_gelu" if config.get("quick_gelu") else "gelu", OPENCLIP_CONFIG)


def from_transformers_config(folder: Path, sizes: Sizes) -> Configured | None:
    """The same by transformers' `config.json` beside weights in OpenAI's names."""
    path = folder / "config.json"
    config = read_json(path, _UNCHANGED) if path.is_file() else {}
    text, image = (config.get(part) or {} for part in ("text_config", "vision_config"))
    if "num_attention_heads" not in text or "num_attention_heads" not in image:
        return None
    _check_same(
        "config.json",
        {
            "text_config.hidden_size": (text.get("hidden_size", 512), sizes.text_width),
            "text_config.num_hidden_layers": (text.get("num_hidden_layers", 12), sizes.text_layers),
            "vision_config.hidden_size": (image.get("hidden_size", 768), sizes.vision_width),
            "vision_config.num_hidden_layers": (image.get("num_hidden_layers", 12), sizes.vision_layers),
        },
    )
    acts = {part.get("hidden_act", "quick_gelu") for part in (text, image)}
    if len(acts) > 1 or not acts <= set(ACTIVATIONS):
        raise ValueError(f"config.json: activations {sorted(acts)}; expected one for both, quick_gelu or gelu.")
    return Configured(Heads(text["num_attention_heads"], image["num_attention_heads"]), acts.pop(), "config.json")


def _check_same(file: str, fields: dict[str, tuple[Any, int]]) -> None:
    wrong = [f"{name} is {wrong}, of the weights {real}" for name, (wrong, real) in fields.items() if wrong != real]
    if wrong:
        raise ValueError(
            f"{file} beside the weights is of another model ({'; '.join(wrong)}). Put the weights' own there, or move "
            f"the weights to a folder of their own."
        )
