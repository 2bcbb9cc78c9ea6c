"""8- and 4-bit weights (bitsandbytes, which runs on CPU): the method on quantised weights, saved and loaded again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import hf_longctx
from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from tests.contract.registry import differs, same
from tests.tiny import logits_of, text
from tests.wrapping.cases import ATTENTION, METHODS, each_method, saved

pytest.importorskip("bitsandbytes")

IDS = text(2, 40)
# bitsandbytes quantises blocks of 64 along the inputs, and its CPU kernel takes outputs by 32
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
QUANTISED: dict[str, Any] = {
    "8-bit": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}
each_format = pytest.mark.parametrize("bits", QUANTISED)
# the same weights and inputs through two orders of summation in fp32. 8 bits round inputs as well: what differs in the
# last place may round to the next of 254 steps, 0.4 % of a row's largest; 4-bit kernels for CPUs with AMX multiply in
# bfloat16, which keeps 8 bits
OFF = {"8-bit": 3e-2, "nf4": 3e-2, "fp4": 3e-2}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")  # remarks on every matrix


@pytest.fixture(params=["llama", "qwen3"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(folder: Path, bits: str, **kwargs: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**QUANTISED[bits]), **kwargs
    )
    assert type(model.model.layers[0].self_attn.q_proj).__module__.startswith("bitsandbytes")
    return model


def near(actual: Tensor, expected: Tensor, bits: str) -> None:
    off = float((actual.double() - expected).norm() / expected.double().norm())
    assert off < OFF[bits], off


def greedy(model: Any, steps: int = 8) -> Tensor:
    return model.generate(IDS, max_new_tokens=steps, do_sample=False)


@each_format
@pytest.mark.parametrize("method", ATTENTION.values(), ids=ATTENTION)
def test_same_tokens_as_the_reference_kernel_on_the_same_weights(
    method: Any, bits: str, family: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "stock", family=family, **SIZES)
    fast, plain = load(folder, bits), load(folder, bits, attn_implementation="eager")
    stock = logits_of(fast, IDS)
    for model in (fast, plain):
        method.apply(model)
    ours = logits_of(fast, IDS)
    differs(ours, stock)
    near(ours, logits_of(plain, IDS), bits)
    same(greedy(fast), greedy(plain), "tokens")
    hf_longctx.undo(fast)
    same(logits_of(fast, IDS), stock, "undone")


@each_format
@pytest.mark.parametrize(
    "method", [LMInfinite(n_local=512), StreamingLLM(n_sink=0, window=512), PositionFree()], ids=lambda m: m.name
)
def test_identity_settings_give_the_stock_quantised_models_tokens(
    method: Any, bits: str, family: str, tmp_path: Path
) -> None:
    model = load(saved(tmp_path / "stock", family=family, **SIZES), bits)
    stock, tokens = logits_of(model, IDS), greedy(model)
    with method.on(model):
        near(logits_of(model, IDS), stock, bits)
        same(greedy(model), tokens, "tokens")


@each_format
@each_method
def test_a_keyed_checkpoint_is_quantised_as_it_loads_and_saved_with_both(
    method: Any, bits: str, tmp_path: Path
) -> None:
    in_memory = load(saved(tmp_path / "stock", **SIZES), bits)
    method.apply(in_memory)
    keyed = load(saved(tmp_path / "keyed", method, **SIZES), bits)
    # before the first forward: where bitsandbytes (0.50) repacks 4-bit weights for the CPU, it cannot save them after
    for name, model in {"keyed": keyed, "in memory": in_memory}.items():
        model.save_pretrained(tmp_path / name)
    ours, tokens = logits_of(keyed, IDS), greedy(keyed)
    same(logits_of(in_memory, IDS), ours, "applied in memory")
    for name in ("keyed", "in memory"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert again.config.quantization_config.to_dict() == keyed.config.quantization_config.to_dict()
        assert [p.method for p in hf_longctx.applied(again)] == [p.method for p in hf_longctx.applied(keyed)]
        same(logits_of(again, IDS), ours, f"{name}, saved quantised with the method")
        same(greedy(again), tokens, "tokens")


@pytest.mark.parametrize("bits", ["8-bit", "nf4"])
@pytest.mark.parametrize("row", ["lm_infinite", "rope_scaling"])
def test_an_adapter_trains_on_quantised_weights_and_brings_the_method(bits: str, row: str, tmp_path: Path) -> None:
    stock, method = saved(tmp_path / "stock", **SIZES), METHODS[row]
    model = get_peft_model(load(stock, bits), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    method.apply(model)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(stock, bits), tmp_path / "adapter")
    assert [p.method for p in hf_longctx.applied(loaded)] == [method]
    near(logits_of(loaded, IDS), logits_of(model, IDS), bits)
