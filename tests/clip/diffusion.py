"""A tokenizer that knows every character, CLIP text encoders for it, and tiny Stable Diffusion and SDXL pipelines."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.clip.tiny import VISION, spread

WORDS = ["red", "cat", "dog", "sits", "on", "a", "mat"]


def bytes_tokenizer(length: int = 77, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """As CLIP's: bytes, the last of a word marked, and a few whole words. Stable Diffusion 2 and SDXL pad with `!`."""
    letters = list(bytes_to_unicode().values())
    merges = [(word[:i], word[i] + "</w>" * (i == len(word) - 1)) for word in WORDS for i in range(1, len(word))]
    merged = list(dict.fromkeys("".join(pair) for pair in merges))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=length,
        pad_token=pad,
    )


def _config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        projection_dim=16,
    )


def encoder(tokenizer: CLIPTokenizer, width: int = 32) -> CLIPTextModel:
    return spread(CLIPTextModel(_config(tokenizer, width, 3)))


def projecting(tokenizer: CLIPTokenizer, width: int = 24) -> CLIPTextModelWithProjection:
    return spread(CLIPTextModelWithProjection(_config(tokenizer, width, 2)))


def scoring_model() -> tuple[CLIPModel, CLIPTokenizer]:
    """In place of a CLIP tuned to preferences."""
    tokenizer = bytes_tokenizer()
    config = CLIPConfig(text_config=_config(tokenizer, 32, 3), vision_config=VISION, projection_dim=16)
    return spread(CLIPModel(config)), tokenizer


def _unet(cross: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=cross,
        **more,
    ).eval()


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, sample_size=16, layers_per_block=1, **_BLOCKS)


_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def stable_diffusion() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    tokenizer = bytes_tokenizer()
    return _quiet(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(32),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl(**more: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    first, second = bytes_tokenizer(), bytes_tokenizer(pad="!")
    unet = _unet(
        32 + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        transformer_layers_per_block=1,
    )
    return _quiet(
        StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=encoder(first),
            text_encoder_2=projecting(second),
            tokenizer=first,
            tokenizer_2=second,
            unet=unet,
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            add_watermarker=False,
            **more,
        )
    )


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
