"""PEFT: an adapter trained under a method carries it, and brings it to a base that has none."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.config import PeftConfigMixin
from peft.tuners.adaption_prompt import AdaptionPromptModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import hotswap
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.peft import PeftAdapterMixin

import hf_longctx
from hf_longctx import LMInfinite, RopeScaling, StreamingLLM
from hf_longctx.hooks import peft as adapters
from hf_longctx.hooks import startup
from tests.contract.registry import close, differs, fingerprint, same
from tests.tiny import logits_of, text, tiny
from tests.transformers_peft import needs_transformers_peft
from tests.wrapping.cases import ATTENTION, METHODS, ROPE, each_method, saved

IDS = text(2, 24)
METHOD = ATTENTION["lm_infinite"]
ROOT = Path(__file__).parent.parent.parent


def lora(**changes: Any) -> LoraConfig:
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**fields, **changes})


def carried(folder: Path) -> Any:
    return json.loads((folder / "adapter_config.json").read_text()).get("hf_longctx")


def methods_of(model: Any) -> list[Any]:
    return [patch.method for patch in hf_longctx.applied(model)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


def load(base: Path, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, **kwargs)


def train(base: Path, out: Path, *methods: Any, model: Any = None) -> torch.Tensor:
    """Save an adapter of `base` under `methods` in `out`; the logits it gives."""
    wrapped = get_peft_model(load(base) if model is None else model, lora())
    for method in methods:
        method.apply(wrapped)
    wrapped.eval().save_pretrained(out)
    return logits_of(wrapped, IDS)


@each_method
def test_an_adapter_brings_its_method_to_a_stock_base(method: Any, base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", method)
    assert carried(tmp_path / "adapter")["methods"][0]["name"] == method.name
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft knows nothing of the entry, and is not asked
        loaded = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert methods_of(loaded) == [method]
    same(logits_of(loaded, IDS), ours)
    hf_longctx.undo(loaded)
    differs(logits_of(loaded, IDS), ours)
    stock = get_peft_model(load(base), lora())
    stock.load_state_dict(loaded.state_dict())
    same(logits_of(loaded, IDS), logits_of(stock.eval(), IDS), "undone through the PeftModel")


@pytest.mark.parametrize(
    "how",
    [
        "AutoPeftModel",
        pytest.param("AutoModel", marks=needs_transformers_peft),
        pytest.param("load_adapter", marks=needs_transformers_peft),
        "low_cpu_mem_usage",
        "in pieces",
    ],
)
@pytest.mark.parametrize("row", ["lm_infinite", "rope_scaling"])
def test_every_way_to_load_an_adapter_brings_the_method(how: str, row: str, base: Path, tmp_path: Path) -> None:
    out, method = tmp_path / "adapter", METHODS[row]
    ours = train(base, out, method)
    if how == "AutoPeftModel":
        model: Any = AutoPeftModelForCausalLM.from_pretrained(out)
    elif how == "AutoModel":
        model = AutoModelForCausalLM.from_pretrained(out)
    elif how == "load_adapter":
        model = load(base)
        model.load_adapter(str(out))
    elif how == "low_cpu_mem_usage":
        model = PeftModel.from_pretrained(load(base), out, low_cpu_mem_usage=True)
    else:
        model = PeftModel.from_pretrained(load(base), out, config=PeftConfig.from_pretrained(out))
    assert methods_of(model) == [method]
    same(logits_of(model, IDS), ours)
    model.generate(input_ids=IDS, max_new_tokens=2)
    model.save_pretrained(tmp_path / "again")  # transformers' way, too
    assert carried(tmp_path / "again") == carried(out)


def test_two_methods_come_in_their_order(base: Path, tmp_path: Path) -> None:
    both = ROPE["rope_scaling"], METHOD
    ours = train(base, tmp_path / "adapter", *both)
    specs = carried(tmp_path / "adapter")["methods"]
    assert [(spec["name"], spec.get("native", False)) for spec in specs] == [
        ("rope_scaling", True),
        ("lm_infinite", False),
    ]
    loaded = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert methods_of(loaded) == list(both)
    same(logits_of(loaded, IDS), ours)


@each_method
def test_a_base_that_was_saved_with_the_method_is_left_as_it_is(method: Any, base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", method)
    keyed = load(saved(tmp_path / "keyed", method))
    before = len(hf_longctx.applied(keyed))
    loaded = PeftModel.from_pretrained(keyed, tmp_path / "adapter")
    assert len(hf_longctx.applied(loaded)) == before
    same(logits_of(loaded, IDS), ours)


def test_an_adapter_of_a_keyed_base_carries_the_key(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", model=load(saved(tmp_path / "keyed", METHOD)))
    same(logits_of(PeftModel.from_pretrained(load(base), tmp_path / "adapter"), IDS), ours)


def test_the_same_method_with_its_default_spelled_out_is_the_same(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", LMInfinite())
    model = load(base)
    LMInfinite(n_local=512).apply(model)
    same(logits_of(PeftModel.from_pretrained(model, tmp_path / "adapter"), IDS), ours)


@pytest.mark.parametrize(
    ("on_base", "on_adapter"),
    [
        (StreamingLLM(window=6), METHOD),
        (LMInfinite(n_local=7), METHOD),
        (METHOD, ROPE["rope_scaling"]),
        (RopeScaling(factor=2.0), ROPE["rope_scaling"]),
    ],
    ids=["other method", "other setting", "other kind", "other factor"],
)
def test_a_base_with_another_method_is_refused_and_left_alone(
    on_base: Any, on_adapter: Any, base: Path, tmp_path: Path
) -> None:
    train(base, tmp_path / "adapter", on_adapter)
    model = load(base)
    on_base.apply(model)
    before, logits = fingerprint(model), logits_of(model, IDS)
    with pytest.raises(ValueError, match=r"(?s)adapter 'default' was trained under .* and the model carries .* Undo"):
        PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert fingerprint(model) == before
    same(logits_of(model, IDS), logits)


def test_a_natively_scaled_base_is_refused_by_the_method_itself(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", ROPE["rope_scaling"])
    other = load(saved(tmp_path / "scaled", RopeScaling(factor=2.0)))
    with pytest.raises(ValueError, match="scaled already"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")


def test_a_second_adapter(base: Path, tmp_path: Path) -> None:
    for name, methods in {"same": [METHOD], "other": [StreamingLLM(window=6)], "stock": []}.items():
        train(base, tmp_path / name, *methods)
    model = PeftModel.from_pretrained(load(base), tmp_path / "same")
    ours = logits_of(model, IDS)
    model.load_adapter(tmp_path / "same", "second")
    with pytest.raises(ValueError, match=r"adapter 'third' was saved without a method, and the model carries LMInf"):
        model.load_adapter(tmp_path / "stock", "third")
    with pytest.raises(ValueError, match=r"adapter 'fourth' was trained under StreamingLLM"):
        model.load_adapter(tmp_path / "other", "fourth")
    assert list(model.peft_config) == ["default", "second"]
    assert methods_of(model) == [METHOD]
    same(logits_of(model, IDS), ours)
    model.delete_adapter("default")
    assert methods_of(model) == [METHOD]
    model.save_pretrained(tmp_path / "all")
    assert carried(tmp_path / "all" / "second") == carried(tmp_path / "same")


@each_method
def test_merging_and_unloading_keep_the_method(method: Any, base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", method)
    merged = PeftModel.from_pretrained(load(base), tmp_path / "adapter").merge_and_unload()
    assert methods_of(merged) == [method]
    close(logits_of(merged, IDS), ours)
    merged.save_pretrained(tmp_path / "merged")
    same(logits_of(load(tmp_path / "merged"), IDS), logits_of(merged, IDS))
    hf_longctx.undo(merged)
    differs(logits_of(merged, IDS), ours)

    unloaded = PeftModel.from_pretrained(load(base), tmp_path / "adapter").unload()
    assert methods_of(unloaded) == [method]
    hf_longctx.undo(unloaded)
    same(logits_of(unloaded, IDS), logits_of(load(base), IDS))


def test_undoing_before_saving_takes_the_entry_out(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", METHOD)
    model = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    hf_longctx.undo(model)
    model.save_pretrained(tmp_path / "again")
    assert carried(tmp_path / "again") is None


def test_an_adapter_without_a_method_is_saved_as_without_us(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(base), lora())
    model.save_pretrained(tmp_path / "ours")
    code = (
        "import sys\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        "base = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "PeftModel.from_pretrained(base, sys.argv[2]).save_pretrained(sys.argv[3])\n"
        "assert 'hf_longctx' not in sys.modules\n"
    )
    run(code, base, tmp_path / "ours", tmp_path / "theirs")
    PeftModel.from_pretrained(load(base), tmp_path / "ours").save_pretrained(tmp_path / "again")
    theirs, again = (tmp_path / name for name in ("theirs", "again"))
    weights = "adapter_model.safetensors"
    assert (theirs / weights).read_bytes() == (again / weights).read_bytes()
    one, two = (json.loads((folder / "adapter_config.json").read_text()) for folder in (theirs, again))
    for fields in (one, two):
        fields["target_modules"] = sorted(fields["target_modules"])  # a set, in any order
    assert one == two


OTHERS: dict[str, Any] = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "adaption prompts": AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1),
    "IA3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("row", ["lm_infinite", "rope_scaling"])
def test_other_kinds_of_adapters_carry_the_method(kind: str, row: str, base: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(base), copy.deepcopy(OTHERS[kind]))
    METHODS[row].apply(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert methods_of(loaded) == [METHODS[row]]
    same(logits_of(loaded, IDS), logits_of(model, IDS))


def test_prefix_tuning_is_refused_under_an_attention_method(base: Path) -> None:
    model = get_peft_model(load(base), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    METHOD.apply(model)
    with pytest.raises(ValueError, match="holds 3 rotated keys"):
        model(IDS)


def test_a_config_object_stays_as_it_was_when_its_adapter_is_saved(base: Path, tmp_path: Path) -> None:
    config = lora()
    model = get_peft_model(load(base), config)
    METHOD.apply(model)
    model.save_pretrained(tmp_path / "one")
    assert carried(tmp_path / "one")
    other = get_peft_model(load(base), config)
    assert not hf_longctx.applied(other), "a new adapter from the same object brought the method"
    other.save_pretrained(tmp_path / "other")
    assert carried(tmp_path / "other") is None
    read = PeftConfig.from_pretrained(tmp_path / "one")
    for _ in range(2):  # a config that was read with an entry brings it every time
        assert methods_of(PeftModel.from_pretrained(load(base), tmp_path / "one", config=read)) == [METHOD]


def run(code: str, *args: Any) -> str:
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_without_hf_longctx_peft_says_that_it_ignores_the_entry(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", METHOD)
    code = (
        "import sys\nfrom peft import AutoPeftModelForCausalLM\n"
        "AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])\nassert 'hf_longctx' not in sys.modules\n"
    )
    assert "Unexpected keyword arguments ['hf_longctx']" in run(code, tmp_path / "adapter")


def test_peft_is_not_imported_by_us_and_may_come_later(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "adapter", METHOD)
    torch.save(ours, tmp_path / "logits.pt")
    code = """
import sys, importlib.util
import hf_longctx, torch
from transformers import AutoModelForCausalLM
from tests.tiny import logits_of, text
assert "peft" not in sys.modules
assert importlib.util.find_spec("peft") is not None and "peft" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
from peft import PeftModel
model = PeftModel.from_pretrained(model, sys.argv[2])
assert torch.equal(logits_of(model, text(2, 24)), torch.load(sys.argv[3]))
hf_longctx.uninstall()
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
assert any("hf_longctx" in str(w.message) for w in said)
assert not hf_longctx.applied(stock)
assert not any(type(finder).__module__.startswith("hf_longctx") for finder in sys.meta_path)
hf_longctx.install()
stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
assert hf_longctx.applied(stock)
"""
    run(code, base, tmp_path / "adapter", tmp_path / "logits.pt")


def test_uninstall_before_peft_is_imported() -> None:
    code = "import hf_longctx\nhf_longctx.uninstall()\nimport peft\nfrom hf_longctx.hooks import peft as hooks\n"
    run(f"{code}assert not hooks._wrapped\n")


def test_the_hook_is_taken_back_whole() -> None:
    ours = {(owner, name): vars(owner)[name] for owner, name, *_ in adapters._wrapped}
    peft_owners = {PeftConfigMixin, PeftModel, PeftMixedModel, BaseTuner, AdaptionPromptModel, hotswap}
    assert {owner for owner, _ in ours} == peft_owners | {PreTrainedModel, PeftAdapterMixin}
    try:
        startup.uninstall_peft()
        startup.uninstall_peft()
        for (owner, name), wrap in ours.items():
            now = vars(owner)[name]
            assert now is not wrap
            assert not getattr(now, "__module__", "").startswith("hf_longctx"), name
        assert startup.peft_watch not in sys.meta_path
    finally:
        startup.peft_watch.start()
        startup.peft_watch.start()
    assert len(adapters._wrapped) == len(ours)
    assert sys.meta_path.count(startup.peft_watch) == 1


BAD: dict[str, tuple[Any, str]] = {
    "unknown method": ({"version": 1, "methods": [{"name": "lm_infinit"}]}, "Did you mean 'lm_infinite'"),
    "newer schema": ({"version": 2, "methods": []}, r"upgrade: git pull && pip install \."),
    "no list": ({"version": 1}, "expected {"),
    "bad native": ({"version": 1, "methods": [{"name": "rope_scaling", "factr": 2, "native": True}]}, "'factor'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_entry_fails_before_the_model_is_changed(case: str, base: Path, tmp_path: Path) -> None:
    entry, message = BAD[case]
    train(base, tmp_path / "adapter", METHOD)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hf_longctx": entry}))
    model = load(base)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert fingerprint(model) == before


def test_an_adapter_that_cannot_be_injected_leaves_no_method_behind(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", METHOD)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["nowhere"]}))
    model = load(base)
    with pytest.raises(ValueError, match="nowhere"):
        PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert not hf_longctx.applied(model)
    same(logits_of(model, IDS), logits_of(tiny(), IDS))
