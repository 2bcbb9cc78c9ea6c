"""The text decoder of a vision-language model: the method reaches it, whoever loads, saves or calls the model."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from transformers import AutoModel, DynamicCache, Gemma3Config, Gemma3ForConditionalGeneration

import hf_longctx
from hf_longctx import LMInfinite, PositionFree
from hf_longctx.upstream.caches import given_cache
from tests.contract.registry import close, differs, fingerprint, same
from tests.families.vision import around_a_picture
from tests.tiny import SIZES, build, config_of, greedy_uncached, left_padded, logits_of, text

IDS = text(2, 24)
METHOD = LMInfinite(n_global=2, n_local=6)
KEY = {"version": 1, "methods": [METHOD.spec()]}


def config(**changes: Any) -> Gemma3Config:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3Config(
        text_config=config_of("gemma3").to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        **changes,
    )


def model(config_: Gemma3Config | None = None) -> Any:
    return build(Gemma3ForConditionalGeneration, config_ or config(), attn_implementation=None)


def test_apply_generate_and_undo() -> None:
    vlm = model()
    stock, before = logits_of(vlm, IDS), fingerprint(vlm)
    patch = METHOD.apply(vlm)
    differs(logits_of(vlm, IDS), stock)
    same(vlm.generate(IDS, max_new_tokens=9, do_sample=False), greedy_uncached(vlm, IDS, 9))
    cache = DynamicCache(config=vlm.config.text_config)
    parts = [logits_of(vlm, chunk, past_key_values=cache) for chunk in IDS.split(7, 1)]
    close(torch.cat(parts, 1), logits_of(vlm, IDS))
    patch.undo()
    same(logits_of(vlm, IDS), stock)
    assert fingerprint(vlm) == before
    with pytest.raises(RuntimeError, match="un-rotated keys"):
        logits_of(vlm, IDS, past_key_values=cache)


def test_the_hook_alone_is_bit_equal_in_padded_generation() -> None:
    vlm = model()
    ids, mask = left_padded([IDS[0], IDS[1, :13]])
    stock = vlm.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    with PositionFree().on(vlm):
        same(vlm.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), stock)


@pytest.mark.parametrize("where", ["extend_config", "text_config", "outer config"])
def test_a_keyed_config_is_active_saved_and_undone(where: str, tmp_path: Any) -> None:
    stock, plain = model(), model()
    METHOD.apply(plain)
    ours = logits_of(plain, IDS)
    if where == "extend_config":
        keyed_config = hf_longctx.extend_config(config(), METHOD)
    elif where == "text_config":
        keyed_config = config()
        keyed_config.text_config.hf_longctx = KEY
    else:
        keyed_config = config(hf_longctx=KEY)
    keyed = model(keyed_config)
    keyed.save_pretrained(tmp_path)
    for vlm in (keyed, Gemma3ForConditionalGeneration.from_pretrained(tmp_path)):
        assert [p.method for p in hf_longctx.applied(vlm)] == [METHOD]
        assert vlm.config.text_config is vlm.model.language_model.config
        assert vlm.config.text_config.hf_longctx == KEY
        same(logits_of(vlm, IDS), ours)
        same(vlm.generate(IDS, max_new_tokens=5), plain.generate(IDS, max_new_tokens=5))
        hf_longctx.undo(vlm)
        same(logits_of(vlm, IDS), logits_of(stock, IDS))
        assert "hf_longctx" not in vlm.config.to_json_string()
    inner = AutoModel.from_pretrained(tmp_path)
    cache = DynamicCache(config=inner.config.text_config)
    with torch.no_grad():
        parts = [inner(c, past_key_values=cache).last_hidden_state for c in IDS.split(7, 1)]
        close(torch.cat(parts, 1), inner(IDS).last_hidden_state)


SEVERAL = {
    "Qwen2VLTextModel": ("qwen2_vl", [1, 2, 1]),
    "Qwen2_5_VLTextModel": ("qwen2_5_vl", [1, 2, 1]),
    "Qwen3VLTextModel": ("qwen3_vl", [2, 1, 1]),
    "Qwen3VLMoeTextModel": ("qwen3_vl_moe", [2, 1, 1]),
    "Qwen3_5TextModel": ("qwen3_5", [2, 1, 1]),
    "Glm4vTextModel": ("glm4v", [2, 1, 1]),
    "Glm4vMoeTextModel": ("glm4v_moe", [2, 1, 1]),
}


def several(name: str) -> Any:
    """A tiny text decoder whose tokens have a position in time, height and width each."""
    family, section = SEVERAL[name]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, "partial_rotary_factor": 1.0}
    more: dict[str, Any] = {"rope_parameters": rope, "head_dim": 8}
    if "moe" in family:
        more |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4}
        more |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    if family == "qwen3_5":
        more |= {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
        more |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    cls = getattr(module, name)
    return build(cls, cls.config_class(**{**SIZES, **more}))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("method", [PositionFree(), LMInfinite(n_global=2, n_local=32)], ids=lambda m: m.name)
def test_tokens_with_three_positions_are_served_as_text_and_refused_as_images(name: str, method: Any) -> None:
    decoder, ids = several(name), text(2, 24)
    flat = torch.arange(24)[None].expand(2, -1)
    image = around_a_picture(flat)

    def out(pos: Any = None, **kwargs: Any) -> Any:
        with torch.no_grad():
            start = 0 if pos is None else kwargs.pop("start", 0)
            part = ids[:, start : None if pos is None else start + pos.shape[-1]]
            return decoder(input_ids=part, position_ids=pos, **kwargs).last_hidden_state

    plain = {"none": None, "one": flat, "three": flat.expand(3, -1, -1)}
    stock = {words: out(pos) for words, pos in plain.items()}
    differs(out(image), stock["one"])
    with method.on(decoder):
        for words, pos in plain.items():
            close(out(pos), stock[words], f"{words} position a token")
        cache = DynamicCache(config=decoder.config)
        read = given_cache(decoder, cache)
        parts = [out(flat.expand(3, -1, -1)[..., i : i + n], start=i, **read) for i, n in ((0, 20), (20, 3), (23, 1))]
        close(torch.cat(parts, 1), stock["one"], "in pieces")
        for pos in (image, torch.cat([flat[None], image])):
            with pytest.raises(ValueError, match=r"one position per token.* supported for text alone"):
                out(pos)
        cache = DynamicCache(config=decoder.config)
        out(image[..., :6], start=0, **given_cache(decoder, cache))  # the text before the picture
        with pytest.raises(ValueError, match=r"one position per token"):
            out(image[..., 6:], start=6, **given_cache(decoder, cache))
