"""`device_map` and accelerate's offloading, to CPU and disk, before and after the method; undone under the hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_longctx
from tests.contract.registry import differs, same
from tests.tiny import logits_of, text, tiny
from tests.wrapping.cases import METHODS, each_method, saved

IDS = text(2, 24)
CPU = torch.device("cpu")
PARTS = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
MAPS: dict[str, Any] = {
    "auto": "auto",
    "one layer on disk": {**PARTS, "model.layers.0": "cpu", "model.layers.1": "disk"},
    "all on disk": {"model": "disk", "lm_head": "disk"},
}
ROUTES: dict[str, Callable[[Any, str], Any]] = {
    "cpu_offload": lambda model, folder: cpu_offload(model, execution_device=CPU),
    "cpu_offload_with_hook": lambda model, folder: cpu_offload_with_hook(model, execution_device=CPU)[0],
    "disk_offload": lambda model, folder: disk_offload(model, folder, execution_device=CPU),
    "dispatch_model": lambda model, folder: dispatch_model(
        model, {**PARTS, "model.layers.0": "cpu", "model.layers.1": "disk"}, main_device="cpu", offload_dir=folder
    ),
}


def greedy(model: Any) -> Tensor:
    return model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False)


def expected(method: Any) -> tuple[Tensor, Tensor]:
    model = tiny()
    method.apply(model)
    return logits_of(model, IDS), greedy(model)


@pytest.mark.parametrize("where", MAPS)
@each_method
def test_a_keyed_checkpoint_loads_onto_a_device_map(method: Any, where: str, tmp_path: Path) -> None:
    ours, tokens = expected(method)
    folder = saved(tmp_path / "keyed", method)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=MAPS[where], offload_folder=tmp_path / "offload")
    assert any(p.device.type == "meta" for p in model.parameters()) == (where != "auto"), "nothing was offloaded"
    same(logits_of(model, IDS), ours)
    same(greedy(model), tokens)
    model.save_pretrained(tmp_path / "again")
    same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), IDS), ours, "saved while offloaded")
    if method.native:
        assert not hf_longctx.applied(model)
        return
    hf_longctx.undo(model)
    same(logits_of(model, IDS), logits_of(tiny(), IDS), "undone")
    method.apply(model)
    same(logits_of(model, IDS), ours, "applied again")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("first", ["hooks", "method"])
@each_method
def test_offloading_and_the_method_in_either_order(method: Any, first: str, route: str, tmp_path: Path) -> None:
    ours, tokens = expected(method)
    stock, model = logits_of(tiny(), IDS), tiny()
    differs(ours, stock)
    if first == "hooks":
        model = ROUTES[route](model, str(tmp_path))
        patch = method.apply(model)
    else:
        patch = method.apply(model)
        model = ROUTES[route](model, str(tmp_path))
    same(logits_of(model, IDS), ours)
    same(greedy(model), tokens)
    patch.undo()
    same(logits_of(model, IDS), stock, "undone under the hooks")
    patch = method.apply(model)
    same(logits_of(model, IDS), ours, "applied again under the hooks")
    remove_hook_from_submodules(model)
    same(logits_of(model, IDS), ours, "hooks removed")
    patch.undo()
    same(logits_of(model, IDS), stock, "hooks removed, undone")


@pytest.mark.parametrize("row", ["lm_infinite", "rope_scaling"])
def test_an_adapter_brings_its_method_to_an_offloaded_base(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # PEFT writes offloaded weights again, below the working directory
    base = saved(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    METHODS[row].apply(model)
    model.save_pretrained(tmp_path / "adapter")
    offload = {"device_map": MAPS["one layer on disk"], "offload_folder": tmp_path / "offload"}
    hooked = AutoModelForCausalLM.from_pretrained(base, **offload)
    within = {f"base_model.model.{part}": device for part, device in MAPS["one layer on disk"].items()}
    loaded = PeftModel.from_pretrained(hooked, tmp_path / "adapter", **{**offload, "device_map": within})
    assert any(p.device.type == "meta" for p in loaded.parameters()), "nothing was offloaded"
    assert [p.method for p in hf_longctx.applied(loaded)] == [METHODS[row]]
    same(logits_of(loaded, IDS), logits_of(model, IDS))
    same(greedy(loaded), greedy(model))
