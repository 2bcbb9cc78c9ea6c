"""Configs and models that cannot be scaled: a clear error, and nothing has changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import Phi3Config, Phi3ForCausalLM

import hf_longctx
from hf_longctx import Giraffe, LMInfinite, PositionFree, RopeScaling, StreamingLLM
from tests.contract.registry import fingerprint, same
from tests.rope.cases import methods
from tests.tiny import SIZES, build, config_of, logits_of, text, tiny

IDS = text(1, 20)
YARN = RopeScaling(factor=2.0)
INFINITE, STREAMING = LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6)
FULL = {"rope_type": "default", "rope_theta": 1e4}
# what a config says -> the family, its rope_parameters, what the error must say
CONFIGS: dict[str, tuple[str, Any, str]] = {
    "no rope_parameters": ("llama", None, "LlamaConfig: no rope_parameters"),
    "no rope_theta": (
        "llama",
        {"rope_type": "default"},
        "no 'full_attention' entry with a rope_theta .*Set rope_theta",
    ),
    "rope_theta is text": ("llama", {**FULL, "rope_theta": "big"}, "rope_theta='big' .*expected a number above 1"),
    "rope_theta of 0": ("llama", {**FULL, "rope_theta": 0}, "rope_theta=0 .*expected a number above 1"),
    "no kinds of layers": ("llama", {"full_attention": FULL}, "an entry for 'full_attention'.*have no kinds"),
    "an unknown kind": (
        "gemma3",
        {"chunky": FULL, "full_attention": FULL},
        "an entry for 'chunky', and its layers are",
    ),
    "an unknown kind alone": ("gemma3", {"chunky": FULL}, "an entry for 'chunky'.*full_attention, sliding_attention"),
    "no entry for full attention": ("gemma3", {"sliding_attention": FULL}, "no 'full_attention' entry"),
    "full attention is null": ("gemma3", {"full_attention": None, "sliding_attention": FULL}, "no 'full_attention'"),
    "a type of somebody else's": (
        "llama",
        {**FULL, "rope_type": "their_own"},
        "scaled already .*Choose another method",
    ),
    "a scaling by hand": ("llama", {**FULL, "rope_type": "linear", "factor": 2.0}, "scaled already .*replace=True"),
}


@pytest.mark.parametrize("method", [YARN, Giraffe()], ids=lambda method: method.name)
@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_cannot_be_scaled(case: str, method: Any) -> None:
    family, parameters, message = CONFIGS[case]
    model = tiny(family)
    plain = logits_of(model, IDS)
    model.config.rope_parameters = parameters
    config, before = copy.deepcopy(model.config), fingerprint(model)
    with pytest.raises(ValueError, match=message):
        method.apply(model)
    with pytest.raises(ValueError, match=message):
        hf_longctx.extend_config(config, method)
    assert fingerprint(model) == before
    assert config.rope_parameters == parameters
    assert not hf_longctx.applied(model)
    same(logits_of(model, IDS), plain)


def test_kinds_of_layers_that_this_model_has_none_of_are_no_mistake() -> None:
    model = tiny("gemma3", layer_types=["full_attention"] * 2)
    assert "sliding_attention" in model.config.rope_parameters
    with YARN.on(model):
        assert model.config.rope_parameters["full_attention"]["rope_type"] == "yarn"


@pytest.mark.parametrize("kind", ["llama3", "linear", "yarn"])
def test_a_type_that_the_model_cannot_take(kind: str) -> None:
    model = build(Phi3ForCausalLM, Phi3Config(**SIZES))
    plain, before = logits_of(model, IDS), fingerprint(model)
    method = RopeScaling(type=kind, factor=2.0)
    with pytest.raises(ValueError, match=f"Phi3Config does not take rope_type='{kind}': .*longrope"):
        method.apply(model)
    with pytest.raises(ValueError, match=f"Phi3Config does not take rope_type='{kind}'"):
        hf_longctx.extend_config(model.config, method)
    assert fingerprint(model) == before
    same(logits_of(model, IDS), plain)


def test_an_old_transformers_with_a_longrope_for_each_kind_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.rope.method.LONGROPE_PER_LAYER", False)
    for row in ("longrope_static", "giraffe"):
        model, method = tiny("gemma3"), methods("gemma3")[row]
        before = fingerprint(model)
        with pytest.raises(ValueError, match=r"cannot read past the trained length.*Upgrade to transformers 5\.21"):
            method.apply(model)
        with pytest.raises(ValueError, match=r"Upgrade to transformers 5\.21"):
            hf_longctx.extend_config(model.config, method)
        assert fingerprint(model) == before
        with methods("llama")[row].on(tiny("llama")):
            pass  # one entry for all layers is read rightly by all releases


# -- two of a kind -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("second", [INFINITE, STREAMING, PositionFree()], ids=lambda method: method.name)
def test_a_config_has_room_for_one_method_that_decides_positions(second: Any) -> None:
    config = config_of("llama")
    message = "both control key positions.*Keep one of them"
    with pytest.raises(ValueError, match=message):
        hf_longctx.extend_config(config, INFINITE, second)
    with pytest.raises(ValueError, match=message):
        config.hf_longctx = {"version": 1, "methods": [INFINITE.spec(), second.spec()]}
    assert config.hf_longctx is None


@pytest.mark.parametrize("second", [YARN, RopeScaling(type="ntk", factor=2.0), Giraffe()], ids=repr)
def test_a_config_is_scaled_once(second: Any) -> None:
    for first in (YARN, RopeScaling(type="ntk", factor=2.0)):  # ntk leaves no trace that could be found later
        with pytest.raises(ValueError, match="both scale rotary frequencies, and do not stack"):
            hf_longctx.extend_config(config_of("llama"), first, second)
    with pytest.raises(ValueError, match="scaled already"):
        hf_longctx.extend_config(hf_longctx.extend_config(config_of("llama"), YARN), second)


def test_scaling_a_config_keeps_the_method_that_it_carries() -> None:
    keyed = hf_longctx.extend_config(config_of("llama"), INFINITE)
    both = hf_longctx.extend_config(keyed, YARN)
    assert both.hf_longctx == keyed.hf_longctx
    assert both.rope_parameters["rope_type"] == "yarn"
    with pytest.raises(ValueError, match="changes its frequencies"):
        hf_longctx.extend_config(keyed, RopeScaling(type="dynamic", factor=2.0))
    assert hf_longctx.extend_config(keyed, STREAMING).hf_longctx["methods"] == [STREAMING.spec()]
