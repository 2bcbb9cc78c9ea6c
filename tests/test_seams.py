"""What a method can say of itself: how positions become angles, a bias, which part of a model it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Mamba2Model,
    MistralConfig,
    MistralForCausalLM,
)

import hf_longctx
from hf_longctx import LMInfinite, LongContextMethod, PositionFree, RopeScaling, registry
from hf_longctx.attention.method import AttentionMethod
from hf_longctx.cache import FullLayer
from hf_longctx.ops.bias import DistanceSlopes
from hf_longctx.ops.masks import Causal
from tests.contract.registry import close, differs, fingerprint, same
from tests.tiny import SIZES, build, logits_of, text, tiny

IDS = text(2, 24)


# -- angles ------------------------------------------------------------------------------------------------------------
class Halved(AttentionMethod):
    """Positions divided by two, as linear scaling divides them."""

    def angles(self, decoder: Any, pos_BL: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = decoder.rotary(torch.empty(()), pos_BL / 2)
        return cos, sin

    def cache_layer(self, module: nn.Module) -> FullLayer:
        return FullLayer(self)

    def branches(self, inputs: Any) -> list[Any]:
        return [inputs.branch(Causal(), inputs.keys, *inputs.true_ropes())]


def test_a_method_s_own_angles_are_read_and_the_self_check_is_of_the_model_s() -> None:
    model = tiny()
    with RopeScaling(type="linear", factor=2).on(model):
        scaled = logits_of(model, IDS)
        written = model.generate(IDS, max_new_tokens=6, do_sample=False)
    stock = logits_of(model, IDS)
    differs(scaled, stock)
    with Halved().on(model):
        close(logits_of(model, IDS), scaled)
        same(model.generate(IDS, max_new_tokens=6, do_sample=False), written)
    same(logits_of(model, IDS), stock)


# -- bias --------------------------------------------------------------------------------------------------------------
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


class Sloped(Halved):
    """ALiBi's slopes, on top of the model's own positions."""

    def angles(self, decoder: Any, pos_BL: Tensor) -> None:  # type: ignore[override]
        return None

    def bias(self, module: nn.Module) -> DistanceSlopes:
        return DistanceSlopes(SLOPES)


def test_a_method_s_bias_is_added_to_the_scores_of_every_branch() -> None:
    model, pos = tiny(), torch.arange(24)
    distance_LL = pos[:, None] - pos
    mask_HLL = torch.where(distance_LL < 0, float("-inf"), -SLOPES[:, None, None] * distance_LL)
    with torch.no_grad():
        biased = model(IDS, attention_mask=mask_HLL.expand(2, -1, -1, -1)).logits
    with Sloped().on(model):
        close(logits_of(model, IDS), biased)
    differs(logits_of(model, IDS), biased)


# -- anchor ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def quick() -> Iterator[type[LongContextMethod]]:
    """A method for a model without attention."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Quick(LongContextMethod):
        """Shorter time steps."""

        name: ClassVar[str] = "quick"

        longest: float = 0.05

        def anchor(self, model: nn.Module) -> nn.Module:
            return next(module for module in model.modules() if isinstance(module, Mamba2Model))

        def install(self, patch: Any, decoder: Any) -> None:
            for layer in decoder.layers:
                patch.set(layer.mixer, "time_step_limit", (0.0, self.longest))

    yield Quick
    registry._classes.pop("quick")


def mamba() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61, "state_size": 8, "num_heads": 4}
    return build(Mamba2ForCausalLM, Mamba2Config(**sizes, head_dim=16, n_groups=1, chunk_size=8, pad_token_id=0))


def test_a_method_may_change_a_model_without_rotary_embeddings(quick: Any, tmp_path: Path) -> None:
    model = mamba()
    stock, before = logits_of(model, IDS), fingerprint(model)
    patch = quick().apply(model)
    changed = logits_of(model, IDS)
    differs(changed, stock)
    assert [p.method for p in hf_longctx.applied(model)] == [quick()]
    patch.undo()
    same(logits_of(model, IDS), stock)
    assert fingerprint(model) == before
    quick().apply(model)
    model.save_pretrained(tmp_path)
    same(logits_of(Mamba2ForCausalLM.from_pretrained(tmp_path), IDS), changed)
    hf_longctx.undo(model)
    with pytest.raises(ValueError, match="Mamba2ForCausalLM: no decoder with rotary position embeddings"):
        LMInfinite(n_local=8).apply(model)


def test_methods_on_one_model_change_the_same_part(quick: Any) -> None:
    class Elsewhere(quick):  # type: ignore[misc]
        def anchor(self, model: nn.Module) -> Any:
            return model

    model = mamba()
    with quick().on(model), pytest.raises(ValueError, match="methods on one model must change the same part"):
        Elsewhere().apply(model)
    assert not hf_longctx.applied(model)


# -- check -------------------------------------------------------------------------------------------------------------
def test_check_says_whether_attention_methods_serve_a_model_and_leaves_it() -> None:
    model = tiny("qwen3")
    before = fingerprint(model)
    assert hf_longctx.check(model) is None
    assert fingerprint(model) == before
    assert not hf_longctx.applied(model)
    assert (
        hf_longctx.check(build(Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8), attn_implementation="eager"))
        is None
    )
    with pytest.raises(ValueError, match="none of its 2 attention layers is a full-attention layer"):
        hf_longctx.check(build(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=16)))
    with PositionFree().on(model), pytest.raises(ValueError, match="already applied"):
        hf_longctx.check(model)
