"""Attention methods on whole vision-language models: text is served, and images never silently misplaced."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from hf_longctx import LMInfinite, PositionFree
from hf_longctx.anatomy import find_decoder
from tests.contract.registry import differs, fingerprint, same
from tests.families.census.looking import RIGHT, distance
from tests.families.vision import around_a_picture, build
from tests.tiny import greedy_uncached, logits_of, text

IDS = text(2, 24)
FLAT = torch.arange(24)[None].expand(2, -1)
IMAGE = around_a_picture(FLAT)
ONE_POSITION = [
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "deepseek_vl_hybrid", "exaone4_5", "fuyu", "gemma3",
    "gemma4", "got_ocr2", "idefics2", "idefics3", "internvl", "kimi_k25", "lfm2_vl", "lighton_ocr", "llama4",
    "llava", "llava_next", "llava_onevision", "minimax_m3_vl", "mistral3", "ovis2", "qianfan_ocr", "smolvlm",
    "video_llama_3", "video_llava", "vipllava",
]  # fmt: skip
THREE_POSITIONS = [
    "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
    "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe",
]  # fmt: skip
METHODS = [PositionFree(), LMInfinite(n_global=2, n_local=6)]


def here(names: list[str]) -> Any:
    """Those that this transformers has."""
    return pytest.mark.parametrize("family", [name for name in names if name in CONFIG_MAPPING])


@here(ONE_POSITION + THREE_POSITIONS)
def test_text_is_served(family: str) -> None:
    model = build(family)
    try:
        stock = logits_of(model, IDS)
    except AttributeError as error:  # Llama 4 of transformers 5.24
        pytest.skip(f"the stock model reads no text alone: {error}")
    before = fingerprint(model)
    with PositionFree().on(model):
        assert distance(logits_of(model, IDS), stock) < RIGHT
    with LMInfinite(n_global=2, n_local=6).on(model):
        differs(logits_of(model, IDS), stock)
        written = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        same(written, greedy_uncached(model, IDS, 4))
    same(logits_of(model, IDS), stock)
    assert fingerprint(model) == before


@torch.no_grad()
def hidden(decoder: Any, pos: Tensor) -> Tensor:
    return decoder(input_ids=IDS, position_ids=pos, use_cache=False).last_hidden_state


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@here(THREE_POSITIONS)
def test_tokens_of_images_are_refused_and_the_same_three_positions_are_not(family: str, method: Any) -> None:
    model = build(family)
    decoder = find_decoder(model)
    flat, image = hidden(decoder, FLAT.expand(3, -1, -1)), hidden(decoder, IMAGE)
    differs(image, flat)
    with method.on(model):
        ours = hidden(decoder, FLAT.expand(3, -1, -1))
        assert distance(ours, flat) < RIGHT or not isinstance(method, PositionFree)
        for pos in (IMAGE, torch.cat([FLAT[None], IMAGE])):
            with pytest.raises(ValueError, match=r"one position per token.* supported for text alone"):
                hidden(decoder, pos)
        same(hidden(decoder, FLAT.expand(3, -1, -1)), ours)
    same(hidden(decoder, IMAGE), image)


@here(["aya_vision", "got_ocr2", "idefics3", "internvl", "llava"])
def test_images_whose_tokens_are_like_others_are_read(family: str) -> None:
    model = build(family)
    stock = logits_of(model, **picture(model, 4 if family == "llava" else 1))
    differs(stock, logits_of(model, IDS[:1]))
    with PositionFree().on(model):
        assert distance(logits_of(model, **picture(model, 4 if family == "llava" else 1)), stock) < RIGHT


def picture(model: Any, n_tokens: int) -> dict[str, Any]:
    """A text with a picture of this many tokens."""
    size, ids = model.config.vision_config.image_size, IDS[:1].clone()
    size = size if isinstance(size, int) else size[0]
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    ids[:, 5 : 5 + n_tokens] = token
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    more = {"token_type_ids": (ids == token).long()} if model.config.model_type == "gemma3" else {}
    pixels = pixels[None] if model.config.model_type == "idefics3" else pixels
    return {"ids": ids, "pixel_values": pixels, **more}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_images_whose_tokens_see_each_other_are_refused(method: Any) -> None:
    model = build("gemma3")
    stock = logits_of(model, **picture(model, 1))
    with method.on(model), pytest.raises(ValueError, match="custom masks are not supported"):
        logits_of(model, **picture(model, 1))
    same(logits_of(model, **picture(model, 1)), stock)


@here(ONE_POSITION)
def test_three_positions_are_never_taken_for_one(family: str) -> None:
    """A decoder that takes one position a token fails at three by itself, or is as it is without the method."""
    model = build(family)
    decoder = find_decoder(model)
    stock: Tensor | None = None
    with contextlib.suppress(Exception):
        stock = hidden(decoder, IMAGE)
    if stock is None:
        return
    with PositionFree().on(model):
        try:
            ours = hidden(decoder, IMAGE)
        except ValueError:
            return
    assert distance(ours, stock) < RIGHT
