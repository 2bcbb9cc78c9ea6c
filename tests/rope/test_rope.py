"""RoPE scaling and Giraffe: equal to stock transformers told everything, undone whole, saved without a plugin."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

import hf_longctx
from hf_longctx import Giraffe, LMInfinite, PositionFree, RopeScaling, StreamingLLM
from hf_longctx.registry import from_spec, parse
from tests.contract.registry import close, differs, fingerprint, same
from tests.rope.cases import MOVING, full_of, methods, works_here, written_by_hand
from tests.test_vision_language import model as vision_language_model
from tests.tiny import FAMILIES, MORE_FAMILIES, greedy_uncached, left_padded, logits_of, text, tiny

ALL_FAMILIES = (*FAMILIES, *MORE_FAMILIES)
ROWS = tuple(methods("llama"))
IDS = text(2, 40)  # past the trained length of 16 that some of the settings name
INFINITE, STREAMING = LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6)
every_row = pytest.mark.parametrize("row", ROWS)
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)


def state(model: Any) -> dict[str, Any]:
    """The fingerprint, and the rotary embedding's values: attributes and buffers."""
    rotary = model.base_model.rotary_emb
    values = {key: repr(value) for key, value in vars(rotary).items() if key not in ("_buffers", "config")}
    buffers = {key: (id(value), value.tolist()) for key, value in rotary._buffers.items()}
    return {"fingerprint": fingerprint(model), "values": values, "buffers": buffers}


def through_stock(model: Any, folder: Path, method: Any) -> Any:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, rope_parameters=written_by_hand(method, model.config))


# -- what it does ------------------------------------------------------------------------------------------------------
@every_row
@every_family
def test_equals_stock_told_everything(family: str, row: str, tmp_path: Path) -> None:
    model, method = tiny(family), methods(family)[row]
    plain = logits_of(model, IDS)
    stock = through_stock(model, tmp_path, method)
    patch = method.apply(model)
    same(logits_of(model, IDS), logits_of(stock, IDS))
    if row != "dynamic":  # which does nothing within the trained length
        differs(logits_of(model, IDS), plain)
    if row not in MOVING:
        generated = model.generate(IDS, max_new_tokens=4, do_sample=False)
        same(generated, greedy_uncached(model, IDS, 4))
    patch.undo()
    same(logits_of(model, IDS), plain)


def test_dynamic_changes_beyond_the_trained_length(tmp_path: Path) -> None:
    for family in FAMILIES:
        model, method = tiny(family, max_position_embeddings=32), RopeScaling(type="dynamic", factor=4.0)
        stock = through_stock(model, tmp_path / family, method)
        plain, before = logits_of(model, IDS), state(model)
        with method.on(model):
            same(logits_of(model, IDS), logits_of(stock, IDS))
            differs(logits_of(model, IDS), plain)
            same(logits_of(model, IDS[:, :8]), logits_of(stock, IDS[:, :8]))
        assert state(model) == before
        same(logits_of(model, IDS), plain)


def test_sliding_layers_and_the_models_own_settings_are_kept() -> None:
    model = tiny("gemma3")
    RopeScaling(factor=4.0).apply(model)
    parameters = model.config.rope_parameters
    assert parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e2}
    assert parameters["full_attention"]["rope_theta"] == 1e4
    assert parameters["full_attention"]["rope_type"] == "yarn"
    model = tiny("gpt_neox")
    RopeScaling(factor=4.0).apply(model)
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert model.config.max_position_embeddings == 512


def test_giraffe_keeps_fixes_and_stops_what_the_paper_says() -> None:
    # SmolLM2: 32 frequencies, theta 1e5, 8192 tokens: 20 kept, 6 fixed, 6 stopped
    base = [1e5 ** (-2 * j / 64) for j in range(32)]
    table = Giraffe().table(base, 8192)
    assert table[:20] == base[:20]
    assert set(table[20:26]) == {2 * torch.pi / 8192 / 16}
    assert table[26:] == [0.0] * 6
    assert Giraffe(scale=2.0).table(base, 8192) == [f / 2 for f in table]
    assert Giraffe(basis="power").table([1.0, 0.1], 8192) == [1.0, 0.1 * 0.5**0.5]


def test_a_padded_batch_equals_its_rows_alone() -> None:
    model = tiny()
    Giraffe(train_length=64).apply(model)
    ids, mask = left_padded([text(1, 9)[0], text(1, 21)[0]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = logits_of(model, ids, attention_mask=mask, position_ids=positions)
    close(batch[0, -9:], logits_of(model, text(1, 9))[0])


# -- undone, copied, saved ---------------------------------------------------------------------------------------------
@every_row
@every_family
def test_undo_leaves_nothing(family: str, row: str) -> None:
    model, method = tiny(family), methods(family)[row]
    plain, before = logits_of(model, IDS), state(model)
    patch = method.apply(model)
    assert hf_longctx.applied(model) == [patch]
    ours = logits_of(model, IDS)
    model.generate(IDS, max_new_tokens=2)
    twin = copy.deepcopy(model)
    patch.undo()
    assert state(model) == before
    same(logits_of(model, IDS), plain)
    same(logits_of(twin, IDS), ours)
    hf_longctx.undo(twin)
    same(logits_of(twin, IDS), plain)


def test_what_the_user_changes_meanwhile_survives_undo() -> None:
    model = tiny()
    patch = RopeScaling(factor=4.0).apply(model)
    model.config.use_cache = False
    patch.undo()
    assert model.config.use_cache is False
    assert model.config.rope_parameters == tiny().config.rope_parameters


def test_buffers_follow_the_model_to_another_device() -> None:
    model = tiny()
    patch = RopeScaling(factor=4.0).apply(model)
    model.to("meta")
    patch.undo()
    assert {b.device.type for b in model.buffers()} == {"meta"}


RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[2]))
logits = {}
for folder in json.loads(sys.argv[3]):
    with torch.no_grad():
        logits[folder] = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
assert not any(name.split(".")[0] == "hf_longctx" for name in sys.modules)
torch.save(logits, sys.argv[1])
"""


def test_saved_models_load_without_hf_longctx_in_a_new_process(tmp_path: Path) -> None:
    ours: dict[str, Tensor] = {}
    for family in ALL_FAMILIES:
        for row, method in methods(family).items():
            if not works_here(family, row):
                continue
            model = tiny(family)
            method.apply(model)
            folder = str(tmp_path / family / row)
            ours[folder] = logits_of(model, IDS)
            model.save_pretrained(folder)
            assert "hf_longctx" not in json.loads(Path(folder, "config.json").read_text())
    out = tmp_path / "logits.pt"
    arguments = [str(out), json.dumps(IDS.tolist()), json.dumps(list(ours))]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", RELOAD, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for folder, logits in torch.load(out).items():
        # the same computation: the bar
        torch.testing.assert_close(logits, ours[folder], rtol=0, atol=1e-6, msg=folder)


def test_extend_config_writes_native_settings_and_the_rest_into_the_key(tmp_path: Path) -> None:
    for family in ALL_FAMILIES:
        model, method = tiny(family), RopeScaling(factor=4.0)
        model.save_pretrained(tmp_path / family)
        config = hf_longctx.extend_config(tmp_path / family, method)
        assert config.hf_longctx is None
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / family, config=config)
        method.apply(model)
        same(logits_of(loaded, IDS), logits_of(model, IDS))
        both = hf_longctx.extend_config(tmp_path / family, method, INFINITE)
        assert [spec["name"] for spec in both.hf_longctx["methods"]] == ["lm_infinite"]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / family, config=both)
        INFINITE.apply(model)
        same(logits_of(loaded, IDS), logits_of(model, IDS))


def test_a_key_that_names_a_native_method_is_refused() -> None:
    config = tiny().config
    with pytest.raises(ValueError, match=r"part of a config's rope_parameters.*extend_config"):
        config.hf_longctx = {"version": 1, "methods": [RopeScaling(factor=4.0).spec()]}


def test_settings_survive_json_and_the_command_line() -> None:
    for row, method in methods("llama").items():
        assert from_spec(json.loads(json.dumps(method.spec()))) == method, row
        assert eval(repr(method), {"RopeScaling": RopeScaling, "Giraffe": Giraffe}) == method, row
    assert parse("rope_scaling", ["type=linear", "factor=2"]) == RopeScaling(type="linear", factor=2)


def test_the_text_tower_of_a_vision_language_model_is_scaled_and_saved_natively(tmp_path: Path) -> None:
    for method in (methods("gemma3")[row] for row in ("yarn", "giraffe") if works_here("gemma3", row)):
        vlm = vision_language_model()
        plain, before = logits_of(vlm, IDS), fingerprint(vlm)
        patch = method.apply(vlm)
        ours = logits_of(vlm, IDS)
        differs(ours, plain)
        copy.deepcopy(vlm).save_pretrained(tmp_path / method.name)
        patch.undo()
        assert fingerprint(vlm) == before
        same(logits_of(vlm, IDS), plain)
        loaded = type(vlm).from_pretrained(tmp_path / method.name)
        assert not hf_longctx.applied(loaded)
        same(logits_of(loaded, IDS), ours)


# -- with attention methods ------------------------------------------------------------------------------------------
PAIRS = [(INFINITE, row) for row in ROWS if row not in MOVING] + [(STREAMING, row) for row in ("yarn_all", "giraffe")]


@pytest.mark.parametrize(("attention", "row"), PAIRS, ids=lambda value: getattr(value, "name", value))
@every_family
def test_an_attention_method_over_and_under_a_scaling(family: str, attention: Any, row: str, tmp_path: Path) -> None:
    method = methods(family)[row]
    stock = through_stock(tiny(family), tmp_path / "stock", method)
    attention.apply(stock)  # the truth: the method on a model that transformers scaled
    truth = logits_of(stock, IDS)
    for order in ([method, attention], [attention, method]):
        model = tiny(family)
        before = state(model)
        for one in order:
            one.apply(model)
        same(logits_of(model, IDS), truth)
        same(model.generate(IDS, max_new_tokens=3), stock.generate(IDS, max_new_tokens=3))
        folder = tmp_path / order[0].name
        copy.deepcopy(model).save_pretrained(folder)  # saving writes the architecture into a config
        config = AutoConfig.from_pretrained(folder)
        assert [spec["name"] for spec in config.hf_longctx["methods"]] == [attention.name]
        same(logits_of(AutoModelForCausalLM.from_pretrained(folder), IDS), truth)
        hf_longctx.undo(model)
        assert state(model) == before


@pytest.mark.parametrize("attention", [INFINITE, STREAMING], ids=lambda value: value.name)
@pytest.mark.parametrize("row", MOVING)
@pytest.mark.parametrize("family", FAMILIES)
def test_moving_frequencies_are_refused_in_both_orders(family: str, row: str, attention: Any) -> None:
    for order in ([methods(family)[row], attention], [attention, methods(family)[row]]):
        model = tiny(family)
        order[0].apply(model)
        ours, before = logits_of(model, IDS), state(model)
        with pytest.raises(ValueError, match="changes its frequencies"):
            order[1].apply(model)
        assert state(model)["fingerprint"] == before["fingerprint"]
        same(logits_of(model, IDS), ours)
    with pytest.raises(ValueError, match="changes its frequencies"):
        hf_longctx.extend_config(tiny(family).config, attention, methods(family)[row])


def test_position_free_over_a_scaling_is_the_scaling() -> None:
    model = tiny("smollm3")
    RopeScaling(factor=4.0).apply(model)
    scaled = logits_of(model, IDS)
    with PositionFree().on(model):
        same(logits_of(model, IDS), scaled)


# -- what users get wrong ----------------------------------------------------------------------------------------------
SETTINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown type": (RopeScaling, {"type": "yarm", "factor": 2.0}, "type='yarm': no such .* There are: linear, ntk"),
    "no factor": (RopeScaling, {"type": "linear"}, "factor=None: linear needs"),
    "factor below 1": (RopeScaling, {"factor": 0.5}, "factor=0.5: expected a number from 1"),
    "factor nan": (RopeScaling, {"factor": float("nan")}, "factor=nan"),
    "factor as text": (RopeScaling, {"factor": "4"}, "factor='4' is str"),
    "another type's field": (
        RopeScaling,
        {"type": "linear", "factor": 2.0, "beta_fast": 3.0},
        "beta_fast=3.0: type='linear' does not take it. It takes: factor",
    ),
    "cut-offs of yarn": (RopeScaling, {"factor": 2.0, "beta_slow": 40}, "beta_slow=40, beta_fast=32: .*wrong order"),
    "cut-offs of llama3": (
        RopeScaling,
        {"type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 1},
        "low_freq_factor=4, high_freq_factor=1: .*wrong order",
    ),
    "longrope without tables": (RopeScaling, {"type": "longrope", "factor": 2.0}, "needs short_factor and long_factor"),
    "a table of text": (
        RopeScaling,
        {"type": "longrope", "factor": 2.0, "short_factor": ["a"], "long_factor": [1.0]},
        r"short_factor=\['a'\]: expected numbers above 0",
    ),
    "no trained length": (
        RopeScaling,
        {"factor": 2.0, "original_max_position_embeddings": 0},
        "expected numbers above",
    ),
    "unknown basis": (Giraffe, {"basis": "sine"}, "basis='sine': no such basis"),
    "cut-offs of giraffe": (Giraffe, {"zero_below": 2.0}, "zero_below=2.0: cut-offs in the wrong order"),
    "another basis' field": (Giraffe, {"basis": "power", "middle": 0.5}, "middle=0.5: basis='power' does not take it"),
    "exponent of 0": (Giraffe, {"basis": "power", "exponent": 0}, "exponent=0"),
    "scale below 1": (Giraffe, {"scale": 0.5}, "scale=0.5: expected"),
    "negative length": (Giraffe, {"train_length": -1}, "train_length=-1"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_nonsense_settings(case: str) -> None:
    cls, fields, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        cls(**fields)


def test_models_that_do_not_fit_are_refused_before_anything_changes() -> None:
    static = {"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}
    refused = [
        (tiny(), RopeScaling(**static), "short_factor has 1 entries; the model rotates 8 dims, so 4"),
        (tiny("gemma3"), RopeScaling(factor=2.0, truncate=False), "truncate=False: transformers ignores it"),
        (tiny("gpt_neox", rotary_pct=0.25), RopeScaling(type="ntk", factor=2.0), "2 dims of a head are rotated"),
    ]
    for model, method, message in refused:
        plain, before = logits_of(model, IDS), state(model)
        with pytest.raises(ValueError, match=message):
            method.apply(model)
        assert state(model) == before
        same(logits_of(model, IDS), plain)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    bert = BertModel(BertConfig(vocab_size=9, **sizes))
    with pytest.raises(ValueError, match="no decoder with rotary"):
        RopeScaling(factor=2.0).apply(bert)
    with pytest.raises(ValueError, match="BertConfig: no rope_parameters"):
        hf_longctx.extend_config(bert.config, RopeScaling(factor=2.0))


def test_a_scaling_on_a_scaling_is_refused_and_can_be_replaced() -> None:
    model, yarn = tiny(), RopeScaling(factor=2.0, original_max_position_embeddings=16)
    plain = logits_of(model, IDS)
    for first in (yarn, RopeScaling(type="ntk", factor=2.0), Giraffe()):
        with first.on(model), pytest.raises(ValueError, match="already those of"):
            RopeScaling(factor=4.0).apply(model)
    scaled = tiny(rope_parameters={**full_of(model.config), **written_by_hand(yarn, model.config)})
    before = state(scaled)
    for again in (RopeScaling(factor=4.0), Giraffe()):
        with pytest.raises(ValueError, match=r"scaled already \(rope_type='yarn'\).*replace=True"):
            again.apply(scaled)
    patch = RopeScaling(type="llama3", factor=4.0, replace=True).apply(scaled)
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
    assert scaled.config.rope_parameters == {**llama3, "original_max_position_embeddings": 16}
    patch.undo()
    assert state(scaled) == before
    same(logits_of(model, IDS), plain)


def test_a_model_that_switched_before_is_scaled_anew_and_comes_back() -> None:
    # longrope keeps its long table in an attribute as it runs; a new one must not read it
    entry = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    tables = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = tiny(rope_parameters={**entry, **tables})
    plain = logits_of(model, IDS)
    method = Giraffe(basis="power", replace=True)
    fresh = tiny(rope_parameters=written_by_hand(Giraffe(basis="power", train_length=16), tiny().config))
    with method.on(model):
        same(logits_of(model, IDS), logits_of(fresh, IDS))
    same(logits_of(model, IDS), plain)


def test_moving_frequencies_are_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_longctx"):
        for row in ROWS:
            caplog.clear()
            with methods("llama")[row].on(tiny()):
                pass
            ours = [r for r in caplog.records if r.name == "hf_longctx" and "differs from a forward" in r.message]
            assert len(ours) == (row in MOVING), row


def test_truncate_is_still_ignored_per_layer_upstream() -> None:
    # when this fails, transformers reads it: take our refusal out of rope_scaling.py
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 512}
    tables = []
    for truncate in (True, False):
        full = {**yarn, "truncate": truncate}
        model = tiny("gemma3", rope_parameters={"sliding_attention": {"rope_theta": 1e2}, "full_attention": full})
        tables.append(model.model.rotary_emb.full_attention_inv_freq)
    same(*tables)
