"""PEFT, several adapters on one base: each reads under its own methods, or is refused and nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftMixedModel, PeftModel, PromptTuningConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter  # taken before any wrap could be seen under this name
from transformers import AutoModelForCausalLM

import hf_longctx
from hf_longctx import LMInfinite, RopeScaling, StreamingLLM
from tests.contract.registry import close, differs, same
from tests.tiny import logits_of, text
from tests.transformers_peft import needs_transformers_peft
from tests.wrapping.cases import saved

IDS = text(2, 24)
LONG, OTHER, ROPE = LMInfinite(n_global=2, n_local=6), StreamingLLM(window=9), RopeScaling(type="yarn", factor=4.0)
TRAINED: dict[str, list[Any]] = {"plain": [], "long": [LONG], "other": [OTHER], "rope": [ROPE], "both": [ROPE, LONG]}
# over the weights of an adapter that is alone, these bring what is missing; beside it they would change it
ADDS = [("plain", "long"), ("plain", "other"), ("plain", "rope"), ("plain", "both"), ("rope", "both")]
PAIRS = [(one, two) for one in TRAINED for two in TRAINED if one != two]


class Kinds:
    """Adapters of one base, each trained under its own methods, and what they say."""

    def __init__(self, root: Path, config: Callable[[], Any] | None = None) -> None:
        self.base, self.root, self.says = saved(root / "base"), root, {}
        for seed, (name, methods) in enumerate(TRAINED.items()):
            torch.manual_seed(seed)
            model = get_peft_model(self.load(), lora() if config is None else config()).eval()
            for weight in model.parameters():
                weight.data += torch.randn_like(weight) * 0.1 * weight.requires_grad
            for method in methods:
                method.apply(model)
            model.save_pretrained(root / name)
            self.says[name] = logits_of(model, IDS)

    def load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base)

    def on_base(self, name: str, cls: Any = PeftModel) -> Any:
        return cls.from_pretrained(self.load(), self.root / name, adapter_name=name).eval()


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("adapters"))


def methods_of(model: Any) -> list[Any]:
    return [patch.method for patch in hf_longctx.applied(model)]


def carried(folder: Path) -> list[str]:
    entry = json.loads((folder / "adapter_config.json").read_text()).get("hf_longctx")
    return [] if entry is None else [spec["name"] for spec in entry["methods"]]


def unchanged(model: Any, says: Any, methods: list[Any], weights: dict[str, Any], adapters: list[str]) -> None:
    assert methods_of(model) == methods
    assert list(model.peft_config) == adapters
    now = model.state_dict()
    assert now.keys() == weights.keys()
    for name, weight in weights.items():
        same(now[name], weight, name)
    same(logits_of(model, IDS), says)


def state(model: Any) -> dict[str, Any]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


# -- beside another ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [PeftModel, PeftMixedModel])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_an_adapter_of_other_methods_is_refused_in_either_order(one: str, two: str, cls: Any, kinds: Kinds) -> None:
    model = kinds.on_base(one, cls)
    same(logits_of(model, IDS), kinds.says[one])
    weights = state(model)
    with pytest.raises(ValueError, match=rf"adapter '{two}' was .*(?s:.*)base model of its own"):
        model.load_adapter(kinds.root / two, two)
    unchanged(model, kinds.says[one], TRAINED[one], weights, [one])


@pytest.mark.parametrize("cls", [PeftModel, PeftMixedModel])
@pytest.mark.parametrize("name", TRAINED)
def test_adapters_of_the_same_methods_are_each_as_alone(name: str, cls: Any, kinds: Kinds) -> None:
    model = kinds.on_base(name, cls)
    model.load_adapter(kinds.root / name, "second")
    for adapter in ("second", name):
        model.set_adapter(adapter)
        same(logits_of(model.eval(), IDS), kinds.says[name], adapter)
    model.delete_adapter(name)
    assert methods_of(model) == TRAINED[name]
    model.set_adapter("second")
    same(logits_of(model.eval(), IDS), kinds.says[name], "the first was deleted")


def test_sums_and_rows_of_several_adapters_and_none(kinds: Kinds) -> None:
    model = kinds.on_base("long")
    model.load_adapter(kinds.root / "long", "second")
    model.add_weighted_adapter(["long", "second"], [0.5, 0.5], "sum", combination_type="cat")
    model.set_adapter("sum")
    close(logits_of(model, IDS), kinds.says["long"])
    with torch.no_grad():
        rows = model(IDS, adapter_names=["second", "__base__"]).logits
    base = kinds.load()
    LONG.apply(base)  # the method is of the base, whatever of it reads
    close(rows[:1], kinds.says["long"][:1])
    close(rows[1:], logits_of(base, IDS)[1:])
    with model.disable_adapter():
        close(logits_of(model, IDS), logits_of(base, IDS))
        assert methods_of(model) == [LONG]


def test_a_new_adapter_is_trained_under_what_the_base_carries(kinds: Kinds, tmp_path: Path) -> None:
    model = kinds.on_base("long")
    model.add_adapter("new", lora())
    model.set_adapter("new")
    assert methods_of(model) == [LONG]
    ours = logits_of(model.eval(), IDS)
    model.save_pretrained(tmp_path)
    assert carried(tmp_path / "new") == carried(tmp_path / "long") == ["lm_infinite"]
    same(logits_of(PeftModel.from_pretrained(kinds.load(), tmp_path / "new"), IDS), ours)


def test_an_adapter_in_training_keeps_others_from_bringing_a_method(kinds: Kinds) -> None:
    model = get_peft_model(kinds.load(), lora()).eval()
    says, weights = logits_of(model, IDS), state(model)
    with pytest.raises(ValueError, match="'default' is on the same base without"):
        model.load_adapter(kinds.root / "long", "long")
    unchanged(model, says, [], weights, ["default"])
    LONG.apply(model)  # the way that the message names
    model.load_adapter(kinds.root / "long", "long")
    model.set_adapter("long")
    same(logits_of(model.eval(), IDS), kinds.says["long"])


# -- methods that the user applies -------------------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["before", "after", "in the config"])
def test_a_method_of_the_user_s_holds_for_every_adapter(when: str, kinds: Kinds, tmp_path: Path) -> None:
    base = kinds.load()
    if when == "in the config":
        LONG.apply(base)
        base.save_pretrained(tmp_path / "keyed")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "keyed")
    if when == "before":
        LONG.apply(base)
    model = PeftModel.from_pretrained(base, kinds.root / "plain", adapter_name="plain")
    if when == "after":
        LONG.apply(model)
    ours = logits_of(model, IDS)
    differs(ours, kinds.says["plain"])
    model.load_adapter(kinds.root / "long", "long")
    same(logits_of(model, IDS), ours)
    model.set_adapter("long")
    same(logits_of(model, IDS), kinds.says["long"])
    with pytest.raises(ValueError, match="adapter 'other' was trained under StreamingLLM"):
        model.load_adapter(kinds.root / "other", "other")


def test_the_way_out_that_the_refusal_names(kinds: Kinds, tmp_path: Path) -> None:
    model = kinds.on_base("long")
    with pytest.raises(ValueError, match=r"came with the adapter 'long'.*hf_longctx\.undo\(model\), and apply"):
        model.load_adapter(kinds.root / "plain", "plain")
    hf_longctx.undo(model)
    LONG.apply(model)
    model.load_adapter(kinds.root / "plain", "plain")
    same(logits_of(model, IDS), kinds.says["long"])
    model.save_pretrained(tmp_path)
    assert carried(tmp_path / "plain") == ["lm_infinite"], "the user's choice is written down"


@pytest.mark.parametrize("how", ["unload", "delete_adapter"])
def test_a_method_whose_adapter_is_gone_is_still_not_a_plain_adapter_s(how: str, kinds: Kinds) -> None:
    model = kinds.on_base("long")
    if how == "unload":
        model = model.unload()
        with pytest.raises(ValueError, match="came with the adapter 'long'"):
            PeftModel.from_pretrained(model, kinds.root / "plain")
    else:
        model.load_adapter(kinds.root / "long", "second")
        model.set_adapter("second")
        model.delete_adapter("long")
        with pytest.raises(ValueError, match="came with the adapter 'long'"):
            model.load_adapter(kinds.root / "plain", "plain")
    hf_longctx.undo(model)
    if how == "unload":
        model = PeftModel.from_pretrained(model, kinds.root / "plain", adapter_name="plain")
        same(logits_of(model, IDS), kinds.says["plain"])


@pytest.mark.parametrize("name", TRAINED)
def test_merged_saved_and_loaded_again(name: str, kinds: Kinds, tmp_path: Path) -> None:
    model = kinds.on_base(name)
    model.load_adapter(kinds.root / name, "second")
    merged = model.merge_and_unload(adapter_names=[name])
    close(logits_of(merged, IDS), kinds.says[name])
    merged.save_pretrained(tmp_path)
    same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), IDS), logits_of(merged, IDS))


@pytest.mark.parametrize("name", TRAINED)
def test_several_are_saved_each_with_its_entry(name: str, kinds: Kinds, tmp_path: Path) -> None:
    model = kinds.on_base(name)
    model.load_adapter(kinds.root / name, "second")
    model.save_pretrained(tmp_path)
    assert carried(tmp_path / name) == carried(tmp_path / "second") == carried(kinds.root / name)
    for folder in (name, "second"):
        same(logits_of(PeftModel.from_pretrained(kinds.load(), tmp_path / folder), IDS), kinds.says[name])


# -- in place of another -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_swapped_weights_of_other_methods_are_refused(one: str, two: str, kinds: Kinds) -> None:
    model = kinds.on_base(one)
    weights = state(model)
    with pytest.raises(ValueError, match=rf"adapter '{one}' were trained under|adapter '{one}' was saved without"):
        hotswap_adapter(model, str(kinds.root / two), adapter_name=one, torch_device="cpu")
    unchanged(model, kinds.says[one], TRAINED[one], weights, [one])


@pytest.mark.parametrize("name", TRAINED)
def test_swapped_weights_of_the_same_methods_are_as_alone(name: str, kinds: Kinds) -> None:
    model = kinds.on_base(name)
    for key, weight in model.named_parameters():
        weight.data += 0.1 * ("lora_" in key)
    differs(logits_of(model, IDS), kinds.says[name])
    hotswap_adapter(model, str(kinds.root / name), adapter_name=name, torch_device="cpu")
    same(logits_of(model, IDS), kinds.says[name])


@pytest.mark.parametrize(("one", "two"), [p for p in PAIRS if p not in ADDS])
def test_weights_read_over_an_adapter_of_other_methods_are_refused(one: str, two: str, kinds: Kinds) -> None:
    model = kinds.on_base(one)
    weights = state(model)
    with pytest.raises(ValueError, match=f"adapter '{one}' was trained under|adapter '{one}' was saved without"):
        model.load_adapter(kinds.root / two, one)
    unchanged(model, kinds.says[one], TRAINED[one], weights, [one])


@pytest.mark.parametrize(("one", "two"), ADDS)
def test_weights_read_over_the_only_adapter_bring_the_methods_it_lacked(one: str, two: str, kinds: Kinds) -> None:
    model = kinds.on_base(one)
    model.load_adapter(kinds.root / two, one)
    same(logits_of(model, IDS), kinds.says[two])
    assert methods_of(model) == TRAINED[two]
    with pytest.raises(ValueError, match=r"adapter 'third' was .*model carries"):
        model.load_adapter(kinds.root / one, "third")
    model.load_adapter(kinds.root / two, "third")  # what the first one is now is known
    with pytest.raises(ValueError, match="base model of its own"):
        model.load_adapter(kinds.root / "plain", one)


def test_a_config_object_in_place_of_the_file_s_does_not_lose_the_method(kinds: Kinds) -> None:
    model = PeftModel.from_pretrained(kinds.load(), kinds.root / "long", config=lora())
    same(logits_of(model, IDS), kinds.says["long"])


# -- other kinds of adapters -------------------------------------------------------------------------------------------
def prompts() -> PromptTuningConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def adaption() -> AdaptionPromptConfig:
    return AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1)


@pytest.mark.parametrize("config", [prompts, adaption])
@pytest.mark.parametrize(("one", "two"), [("plain", "long"), ("long", "plain"), ("long", "other")])
def test_other_kinds_of_adapters_are_refused_alike(one: str, two: str, config: Any, tmp_path: Path) -> None:
    kinds = Kinds(tmp_path, config)
    model = kinds.on_base(one)
    with pytest.raises(ValueError, match=f"adapter '{two}' was"):
        model.load_adapter(kinds.root / two, two)
    assert methods_of(model) == TRAINED[one]
    assert list(model.peft_config) == [one]
    same(logits_of(model, IDS), kinds.says[one])
    model.load_adapter(kinds.root / one, "second")
    model.set_adapter("second")
    same(logits_of(model.eval(), IDS), kinds.says[one])


# -- nothing stays of what failed --------------------------------------------------------------------------------------
@pytest.mark.parametrize("cls", [PeftModel, PeftMixedModel])
def test_weights_that_cannot_be_read_leave_no_method(cls: Any, kinds: Kinds, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes((kinds.root / "long" / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00")
    base = kinds.load()
    with pytest.raises(Exception, match=r"(?i)header"):
        cls.from_pretrained(base, tmp_path)
    assert not hf_longctx.applied(base)
    model = kinds.on_base("plain", cls)
    with pytest.raises(Exception, match=r"(?i)header"):
        model.load_adapter(tmp_path, "plain")
    assert not hf_longctx.applied(model)
    same(logits_of(model, IDS), kinds.says["plain"])


# -- transformers' own way ---------------------------------------------------------------------------------------------
@needs_transformers_peft
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_transformers_own_loading_refuses_alike(one: str, two: str, kinds: Kinds) -> None:
    model = kinds.load()
    model.load_adapter(str(kinds.root / one), adapter_name=one)
    weights = state(model)
    with pytest.raises(ValueError, match=f"adapter '{two}' was"):
        model.load_adapter(str(kinds.root / two), adapter_name=two)
    unchanged(model, kinds.says[one], TRAINED[one], weights, [one])
    with pytest.raises(ValueError, match=f"adapter '{one}' were trained under|adapter '{one}' was saved without"):
        model.load_adapter(str(kinds.root / two), adapter_name=one, hotswap=True)
    unchanged(model, kinds.says[one], TRAINED[one], weights, [one])
    model.load_adapter(str(kinds.root / one), adapter_name="second")
    model.set_adapter("second")
    same(logits_of(model, IDS), kinds.says[one])
    with pytest.raises(ValueError, match=f"adapter '{two}' was"):
        PeftModel.from_pretrained(model, kinds.root / two, adapter_name=two)  # both ways on one base


@needs_transformers_peft
def test_transformers_own_swapping_that_was_enabled_beforehand(kinds: Kinds) -> None:
    model = kinds.load()
    model.enable_peft_hotswap()
    model.load_adapter(str(kinds.root / "long"))
    with pytest.raises(ValueError, match="adapter 'default' were trained under StreamingLLM"):
        model.load_adapter(str(kinds.root / "other"), adapter_name="default")
    same(logits_of(model, IDS), kinds.says["long"])
    model.load_adapter(str(kinds.root / "long"), adapter_name="default")
    same(logits_of(model, IDS), kinds.says["long"])
