"""Tiny CLIP-like models, a tokenizer, and a CLIP's weights in OpenAI's names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextModel,
)

VOCAB, BOS, EOS = 98, 96, 97
HEADS = (1, 2)  # of text and images, which no tensor says
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "projection_dim": 24,
}
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def clip(**text: Any) -> CLIPModel:
    return spread(CLIPModel(CLIPConfig(text_config={**TEXT, **text}, vision_config=VISION, projection_dim=24)))


def text_tower(**text: Any) -> CLIPTextModel:
    return spread(CLIPTextModel(CLIPConfig(text_config={**TEXT, **text}).text_config))


def projected(**text: Any) -> CLIPTextModelWithProjection:
    return spread(CLIPTextModelWithProjection(CLIPConfig(text_config={**TEXT, **text}).text_config))


def _siglip_text() -> dict[str, Any]:
    return {key: value for key, value in TEXT.items() if key != "projection_dim"}


def siglip() -> SiglipModel:
    return spread(SiglipModel(SiglipConfig(text_config=_siglip_text(), vision_config=VISION)))


def siglip2() -> Siglip2Model:
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    return spread(Siglip2Model(Siglip2Config(text_config=_siglip_text(), vision_config={**vision, "num_patches": 4})))


def siglip_text() -> SiglipTextModel:
    return spread(SiglipTextModel(SiglipConfig(text_config=_siglip_text()).text_config))


CAUSAL = {"clip": clip, "text": text_tower, "projected": projected}
BIDIRECTIONAL = {"siglip": siglip, "siglip2": siglip2, "siglip_text": siglip_text}


def spread(model: Any) -> Any:
    """Weights and positions large enough to matter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3 if "embedding" in name else 0.15)
            elif "logit" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def texts(*lengths: int, padded: int) -> Tensor:
    """Start, words, end; padded with 0 as OpenAI does."""
    ids = torch.zeros(len(lengths), padded, dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(3, BOS, (length,))
        row[0], row[length - 1] = BOS, EOS
    return ids


def embed(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        if hasattr(model, "get_text_features"):
            return model.get_text_features(input_ids=ids).pooler_output
        out = model(input_ids=ids)
        return out.text_embeds if "text_embeds" in out else out.pooler_output


def tokenizer(length: int = 77) -> CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def saved(model: Any, folder: Path, length: int = 77) -> Path:
    model.save_pretrained(folder)
    tokenizer(length).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    return folder


def openai_names(model: CLIPModel) -> dict[str, Tensor]:
    """The inverse of the converter's name map, written on its own."""
    source = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    out: dict[str, Tensor] = {}
    for tower, ours in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        for i in range(1 + max(int(m[1]) for n in source if (m := re.match(tower + r"\.encoder\.layers\.(\d+)", n)))):
            at, to = f"{tower}.encoder.layers.{i}", f"{ours}.resblocks.{i}"
            for kind in ("weight", "bias"):
                out[f"{to}.attn.in_proj_{kind}"] = torch.cat([source[f"{at}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
                out[f"{to}.attn.out_proj.{kind}"] = source[f"{at}.self_attn.out_proj.{kind}"]
                out[f"{to}.mlp.c_fc.{kind}"] = source[f"{at}.mlp.fc1.{kind}"]
                out[f"{to}.mlp.c_proj.{kind}"] = source[f"{at}.mlp.fc2.{kind}"]
                out[f"{to}.ln_1.{kind}"] = source[f"{at}.layer_norm1.{kind}"]
                out[f"{to}.ln_2.{kind}"] = source[f"{at}.layer_norm2.{kind}"]
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = source[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = source[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = source[f"vision_model.post_layernorm.{kind}"]
    out["token_embedding.weight"] = source["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = source["text_model.embeddings.position_embedding.weight"]
    out["visual.class_embedding"] = source["vision_model.embeddings.class_embedding"]
    out["visual.positional_embedding"] = source["vision_model.embeddings.position_embedding.weight"]
    out["visual.conv1.weight"] = source["vision_model.embeddings.patch_embedding.weight"]
    out["text_projection"] = source["text_projection.weight"].T.contiguous()
    out["visual.proj"] = source["visual_projection.weight"].T.contiguous()
    out["logit_scale"] = source["logit_scale"]
    return out


def long_clip_weights(model: CLIPModel, keep: int = 20) -> dict[str, Tensor]:
    """As Long-CLIP saves: two tables, of which the rows that it does not read hold something else."""
    state = openai_names(model)
    table = state["positional_embedding"]
    frozen, trained = table.clone(), table.clone()
    frozen[keep:] = torch.randn_like(frozen[keep:])
    trained[:keep] = torch.randn_like(trained[:keep])
    return {**state, "positional_embedding": frozen, "positional_embedding_res": trained}
