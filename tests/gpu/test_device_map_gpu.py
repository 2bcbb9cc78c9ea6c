"""A model dispatched over two GPUs, or over GPU, host and disk: `pytest tests/gpu -m gpu` where two GPUs are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_longctx
from tests.contract.registry import differs
from tests.families.census.building import build
from tests.tiny import logits_of, text, tiny
from tests.wrapping.cases import METHODS, each_method, saved

pytestmark = [pytest.mark.gpu, pytest.mark.dist]

FAMILIES = ("llama", "qwen3", "gemma3")
SIZES: dict[str, Any] = {"num_hidden_layers": 3}
HEAD = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 0}
MAPS: dict[str, Any] = {
    # the rotary embedding stands on the first GPU and the last layers on the second
    "two GPUs": {**HEAD, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1},
    "two GPUs and the host": {**HEAD, "model.layers.0": 0, "model.layers.1": "cpu", "model.layers.2": 1},
    "two GPUs and the disk": {**HEAD, "model.layers.0": 1, "model.layers.1": 0, "model.layers.2": "disk"},
}
IDS = text(2, 24)


def near(actual: Tensor, expected: Tensor) -> None:
    # O(3) logits in fp32, other kernels than the CPU's, without TF32
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-4, atol=2e-4)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_cpu(family: str, method: Any = None) -> Any:
    model = tiny(family, **SIZES)
    if method is not None:
        method.apply(model)
    return model


def chunked(model: Any) -> Tensor:
    """Logits with a cache: a prefill, then token by token."""
    first = model(IDS[:, :20].to(0), use_cache=True)
    seen, cache = [first.logits], first.past_key_values
    for i in range(20, 24):
        seen.append(model(IDS[:, i : i + 1].to(0), past_key_values=cache).logits)
    return torch.cat(seen, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", MAPS)
@each_method
@torch.no_grad()
def test_a_keyed_checkpoint_over_two_gpus_equals_the_cpu(method: Any, where: str, family: str, tmp_path: Path) -> None:
    truth = on_cpu(family, method)
    folder = saved(tmp_path / "keyed", method, family, **SIZES)
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=MAPS[where], offload_folder=tmp_path / "offload", dtype=torch.float32
    )
    assert {p.device for p in model.parameters()} >= {torch.device("cuda", 0), torch.device("cuda", 1)}
    near(model(IDS.to(0)).logits, logits_of(truth, IDS))
    near(chunked(model), logits_of(truth, IDS))
    tokens = model.generate(IDS.to(0), max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens.cpu(), truth.generate(IDS, max_new_tokens=6, do_sample=False))
    if not method.native:
        hf_longctx.undo(model)
        near(model(IDS.to(0)).logits, logits_of(on_cpu(family), IDS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", ["hooks", "method"])
@each_method
def test_dispatching_and_the_method_in_either_order(method: Any, first: str, family: str) -> None:
    ours, stock = logits_of(on_cpu(family, method), IDS), logits_of(on_cpu(family), IDS)
    differs(ours, stock)
    model = on_cpu(family)
    if first == "hooks":
        model = dispatch_model(model, MAPS["two GPUs"])
        patch = method.apply(model)
    else:
        patch = method.apply(model)
        model = dispatch_model(model, MAPS["two GPUs"])
    near(logits_of(model, IDS.to(0)), ours)
    patch.undo()
    near(logits_of(model, IDS.to(0)), stock)


@pytest.mark.parametrize("row", ["lm_infinite", "rope_scaling"])
def test_an_adapter_trains_over_two_gpus_and_brings_the_method(row: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", **SIZES)
    load = {"device_map": MAPS["two GPUs"], "dtype": torch.float32}
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, **load), config)
    METHODS[row].apply(model)
    ids = IDS.to(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **load), tmp_path / "adapter")
    assert [p.method for p in hf_longctx.applied(loaded)] == [METHODS[row]]
    near(logits_of(loaded, ids), logits_of(model, ids).cpu())


@pytest.mark.parametrize("where", ["one GPU", "two GPUs"])
@torch.no_grad()
def test_layers_that_read_keys_of_another_device(where: str) -> None:
    """Gemma 4: its last layers read keys of earlier ones, which are on the first GPU."""
    truth = build("gemma4_text")
    model = copy.deepcopy(truth)
    parts = {f"model.{name}": 0 for name, _ in model.model.named_children() if name != "layers"} | {"lm_head": 0}
    last = 1 if where == "two GPUs" else 0
    layers = {f"model.layers.{i}": 0 if i < 2 else last for i in range(len(model.model.layers))}
    model = dispatch_model(model, {**parts, **layers}, force_hooks=True)
    with METHODS["lm_infinite"].on(truth), METHODS["lm_infinite"].on(model):
        near(model(IDS.to(0)).logits, logits_of(truth, IDS))
        near(chunked(model), logits_of(truth, IDS))
