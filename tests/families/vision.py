"""Tiny vision-language models of any model type, by the settings of the census for their text decoders."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from tests.families.census.building import config_of, random_model

# of an image encoder, under the names that families have for them; each gets those that its config has
ENCODER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_heads", "num_attention_heads"), 2),
    **dict.fromkeys(("num_channels", "in_channels"), 3),
    **{"intermediate_size": 48, "patch_size": 14, "image_size": 28, "out_hidden_size": 64, "spatial_merge_size": 2},
    **{"deepstack_visual_indexes": [0], "fullatt_block_indexes": [0], "window_size": 28, "head_dim": 16},
    **{"num_position_embeddings": 16, "temporal_patch_size": 2, "vision_output_dim": 32, "projector_input_dim": 32},
    **{"projector_output_dim": 32, "num_global_layers": 1, "intermediate_layers_indices": [0], "max_num_tiles": 1},
}
# of rotary embeddings that take three positions a token
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "partial_rotary_factor": 1.0}


def build(model_type: str) -> Any:
    """The model, in fp32, its norms unequal. Raises what its classes raise where our settings do not do."""
    config_class = CONFIG_MAPPING[model_type]
    default: Any = config_class()
    parts = {}
    for name, part in ((name, getattr(default, name, None)) for name in ("text_config", "vision_config")):
        if name == "text_config" and part is not None:
            parts[name] = config_of(part.model_type, **_sections(part))
        elif part is not None:
            parts[name] = _encoder(type(part))
    tokens = [name for name in vars(default) if name.endswith(("_token_id", "_token_index"))]
    ids = {name: 205 + i % 6 for i, name in enumerate(sorted(tokens)) if name not in ("pad_token_id", "eos_token_id")}
    more = {"mm_tokens_per_image": 1} if hasattr(default, "mm_tokens_per_image") else {}
    return random_model(AutoModelForImageTextToText, config_class(**parts, **ids, **more))


def around_a_picture(pos_BL: Tensor) -> Tensor:
    """Positions (3, B, L) of a text from 0 on with a picture of 3 x 3 tokens in it: one time, rows and columns."""
    pos = pos_BL.expand(3, -1, -1).clone()
    pos[0, :, 6:15] = 6
    pos[1, :, 6:15] = 6 + torch.arange(9) // 3
    pos[2, :, 6:15] = 6 + torch.arange(9) % 3
    pos[:, :, 15:] -= 6
    return pos


def _sections(text: Any) -> dict[str, Any]:
    """Settings for three positions a token, where the code of a text decoder has them."""
    module = importlib.import_module(type(text).__module__.replace("configuration_", "modeling_"))
    nested = any(isinstance(value, dict) for value in (getattr(text, "rope_parameters", None) or {}).values())
    return {"rope_parameters": SECTIONS} if "mrope_section" in inspect.getsource(module) and not nested else {}


def _encoder(cls: Any) -> Any:
    names = set(inspect.signature(cls.__init__).parameters)
    default = cls()
    settings = {name: value for name, value in ENCODER.items() if name in names or name in vars(default)}
    return cls(**settings)
