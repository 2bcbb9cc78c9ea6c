"""Checkpoints whose weights transformers converts while it reads them: found by the class's name, or by its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from hf_longctx import models
from tests.models.conftest import IDS, METHOD, tokens_of
from tests.tiny import SIZES, build, logits_of

EXPERTS = {"num_experts_per_tok": 2, "sliding_window": None}
MIXTURES: dict[str, Any] = {
    "MixtralForCausalLM": lambda: transformers.MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
    "Qwen3MoeForCausalLM": lambda: transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS, num_experts=4, head_dim=8, moe_intermediate_size=16, decoder_sparse_step=1
    ),
}


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def same_weights(one: Any, two: Any) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.floor
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_converted_both_ways(name: str, tmp_path: Path) -> None:
    stock = build(getattr(transformers, name), MIXTURES[name](), attn_implementation=None)
    stock.save_pretrained(tmp_path / "stock")
    assert any(".experts.0." in weight for weight in names_in(tmp_path / "stock")), "one by one in the file"
    assert not any(".experts.0." in weight for weight in stock.state_dict()), "together in the model"
    cls = getattr(models, f"LongCtx{name}")
    model = cls.from_pretrained(tmp_path / "stock", methods=METHOD)
    assert same_weights(model, stock)
    model.save_pretrained(tmp_path / "dual")
    assert names_in(tmp_path / "dual") == names_in(tmp_path / "stock")
    METHOD.apply(stock)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dual", trust_remote_code=True)
    assert type(loaded) is cls
    for other in (loaded, type(stock).from_pretrained(tmp_path / "dual")):
        assert same_weights(other, stock)
        assert torch.equal(logits_of(other, IDS), logits_of(stock, IDS))
        assert torch.equal(tokens_of(other), tokens_of(stock))


def llava() -> Any:
    text = transformers.LlamaConfig(**SIZES)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlavaConfig(
        text_config=text.to_dict(),
        vision_config={**vision, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
        image_token_index=60,
    )


@pytest.mark.parametrize("name", ["LlavaModel", "LlavaForConditionalGeneration"])
def test_a_conversion_for_one_class(name: str, tmp_path: Path) -> None:
    """Where transformers has one by the class's name, ours has the same."""
    stock_class = getattr(transformers, name)
    cls = getattr(models, f"LongCtx{name}")
    stock = build(stock_class, llava(), attn_implementation=None)
    stock.save_pretrained(tmp_path / "stock")
    model = cls.from_pretrained(tmp_path / "stock", methods=METHOD)
    assert same_weights(model, stock)
    model.save_pretrained(tmp_path / "dual")
    assert names_in(tmp_path / "dual") == names_in(tmp_path / "stock")
    assert same_weights(stock_class.from_pretrained(tmp_path / "dual"), stock)
    assert same_weights(cls.from_pretrained(tmp_path / "dual"), stock)


def test_every_conversion_by_class_name_is_shared() -> None:
    from transformers import conversion_mapping

    named = [
        name
        for name in conversion_mapping._MODEL_TO_CONVERSION_PATTERN
        if name[:1].isupper() and hasattr(transformers, name)
    ]
    for name in (*named, "LlavaModel"):
        cls = getattr(models, f"LongCtx{name}", None)
        if cls is not None:
            ours, stock = (get_checkpoint_conversion_mapping(known) or [] for known in (cls.__name__, name))
            patterns = [[(step.source_patterns, step.target_patterns) for step in steps] for steps in (ours, stock)]
            assert patterns[0] == patterns[1], name
