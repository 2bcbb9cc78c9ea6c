"""`from_pretrained` of our classes: `methods`, `config`, and every other argument as the stock class takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import hf_longctx
from hf_longctx import XL3M, LMInfinite, RopeScaling, StreamingLLM, applied, extend_config, models
from hf_longctx.method import KEY as NAME
from tests.models.conftest import IDS, KEY, METHOD, Folders, tokens_of
from tests.tiny import build, config_of, logits_of, tiny

LONG = RopeScaling(type="linear", factor=2.0)


def cls() -> Any:
    return models.LongCtxLlamaForCausalLM


def test_methods_one_several_and_none(folders: Folders) -> None:
    load = cls().from_pretrained
    for methods in (METHOD, [METHOD], (METHOD,)):
        assert torch.equal(logits_of(load(folders.stock, methods=methods), IDS), folders.extended)
    for path, methods in ((folders.stock, None), (folders.dual, ()), (folders.dual, []), (folders.stock, ())):
        model = load(path, methods=methods)
        assert applied(model) == []
        assert getattr(model.config, NAME) is None
        assert torch.equal(logits_of(model, IDS), folders.plain)
    assert torch.equal(logits_of(load(folders.dual), IDS), folders.extended)
    other = load(folders.dual, methods=StreamingLLM(n_sink=2, window=5))
    assert [type(patch.method) for patch in applied(other)] == [StreamingLLM]


def test_several_methods_in_their_order(folders: Folders) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    for method in (LONG, METHOD):
        method.apply(stock)
    model = cls().from_pretrained(folders.stock, methods=[LONG, METHOD])
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))
    assert model.config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize("methods", ["lm_infinite", [METHOD, "lm_infinite"], XL3M(), LMInfinite, {METHOD}])
def test_what_is_no_method_is_refused(methods: Any, folders: Folders) -> None:
    with pytest.raises(ValueError, match="expected a method"):
        cls().from_pretrained(folders.stock, methods=methods)


def test_a_method_that_the_model_refuses_leaves_nothing(folders: Folders) -> None:
    config = LlamaConfig.from_pretrained(folders.stock)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    before = config.to_dict()
    with pytest.raises(ValueError, match="dynamic"):
        cls().from_pretrained(folders.stock, methods=METHOD, config=config)
    assert config.to_dict() == before
    assert torch.equal(logits_of(LlamaForCausalLM.from_pretrained(folders.stock), IDS), folders.plain)


def test_a_config_as_an_object_and_as_a_path(folders: Folders, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(folders.stock)
    config.save_pretrained(tmp_path)
    before = config.to_dict()
    for given in (config, tmp_path, str(tmp_path)):
        model = cls().from_pretrained(folders.stock, methods=METHOD, config=given)
        assert torch.equal(logits_of(model, IDS), folders.extended)
        model.save_pretrained(tmp_path / "saved")
    assert config.to_dict() == before
    keyed = extend_config(config, METHOD)
    assert torch.equal(logits_of(cls().from_pretrained(folders.stock, config=keyed), IDS), folders.extended)
    weights = cls().from_pretrained(folders.stock).state_dict()
    model = cls().from_pretrained(None, methods=METHOD, config=config, state_dict=weights)
    assert torch.equal(logits_of(model, IDS), folders.extended)
    with pytest.raises(ValueError, match="methods= needs a config"):
        cls().from_pretrained(None, methods=METHOD, state_dict=weights)


SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"attn_implementation": "eager"},
    "rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "hidden states": {"output_hidden_states": True},
    "dtype": {"dtype": torch.bfloat16},
    "the older name": {"torch_dtype": torch.float16},
    "dtype in words": {"dtype": "bfloat16"},
    "dtype of the checkpoint": {"dtype": "auto"},
    "device": {"device_map": "cpu"},
    "place": {"local_files_only": True, "revision": "main", "trust_remote_code": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_arguments_of_the_config_and_of_the_weights(name: str, folders: Folders) -> None:
    stock = LlamaForCausalLM.from_pretrained(folders.stock, **SETTINGS[name])
    METHOD.apply(stock)
    model = cls().from_pretrained(folders.stock, methods=METHOD, **SETTINGS[name])
    assert model.dtype == stock.dtype
    expected, found = stock(IDS), model(IDS)
    assert torch.equal(found.logits, expected.logits)
    assert (found.hidden_states is None) == (expected.hidden_states is None)
    ignored = ("_name_or_path", "architectures")
    saved, same = ({k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (model, stock))
    assert saved == same


def test_labels_and_what_was_found(folders: Folders) -> None:
    load = models.LongCtxLlamaForSequenceClassification.from_pretrained
    model, found = load(folders.stock, methods=METHOD, num_labels=3, output_loading_info=True)
    stock, expected = LlamaForSequenceClassification.from_pretrained(
        folders.stock, num_labels=3, output_loading_info=True
    )
    assert model.score.weight.shape == stock.score.weight.shape
    assert found["missing_keys"] == expected["missing_keys"]


def test_a_folder_inside(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.stock, tmp_path / "inner")
    model = cls().from_pretrained(tmp_path, methods=METHOD, subfolder="inner")
    assert torch.equal(logits_of(model, IDS), folders.extended)


def test_quantised_while_it_is_loaded(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    given = BitsAndBytesConfig(load_in_4bit=True)
    # of narrower models the kernel for CPUs with AVX512-BF16 fails, stock's too
    tiny(hidden_size=256, intermediate_size=512).save_pretrained(tmp_path)
    try:
        stock = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=given)
    except Exception as error:
        pytest.skip(f"bitsandbytes {bitsandbytes.__version__} does not quantise here: {error}")
    METHOD.apply(stock)
    model = cls().from_pretrained(tmp_path, methods=METHOD, quantization_config=given)
    assert type(model.model.layers[0].mlp.up_proj) is type(stock.model.layers[0].mlp.up_proj)
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))


def test_scaling_alone_is_native(folders: Folders, tmp_path: Path) -> None:
    model = cls().from_pretrained(folders.dual, methods=LONG)
    assert [type(patch.method) for patch in applied(model)] == [LMInfinite]  # the folder's own stays
    model = cls().from_pretrained(folders.stock, methods=LONG)
    model.save_pretrained(tmp_path)
    assert "modeling_hf_longctx.py" not in {file.name for file in tmp_path.iterdir()}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", NAME} & set(saved)
    stock = LlamaForCausalLM.from_pretrained(folders.stock)
    LONG.apply(stock)
    assert torch.equal(logits_of(LlamaForCausalLM.from_pretrained(tmp_path), IDS), logits_of(stock, IDS))


def test_an_adapter_is_no_base(folders: Folders, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = cls().from_pretrained(folders.dual)
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"is an adapter, and methods= changes its base.*PeftModel"):
        cls().from_pretrained(tmp_path, methods=METHOD)
    assert [patch.method for patch in applied(cls().from_pretrained(tmp_path))] == [METHOD]


def test_a_composite_config_gives_its_text_part(tmp_path: Path) -> None:
    """Auto classes hand a text model of transformers, and not one of ours, the text config inside."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}
    own = {"model_type": "qwen3_5_text", "layer_types": ["full_attention"] * 2, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(
        text_config={**config_of("qwen3").to_dict(), **own, "partial_rotary_factor": 1.0},
        vision_config={**vision, "patch_size": 4, "num_position_embeddings": 16},
        tie_word_embeddings=False,
    )
    build(transformers.Qwen3_5ForConditionalGeneration, config, attn_implementation=None).save_pretrained(
        tmp_path / "stock"
    )
    whole = models.LongCtxQwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "stock", methods=METHOD)
    whole.save_pretrained(tmp_path / "dual")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    METHOD.apply(stock)
    direct = models.LongCtxQwen3_5ForCausalLM.from_pretrained(tmp_path / "dual")
    assert torch.equal(logits_of(direct, IDS), logits_of(stock, IDS))
    try:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "dual", trust_remote_code=True)
    except ValueError as error:
        if "not consistent with the config class" not in str(error):
            raise
        pytest.skip("Auto classes of this transformers refuse every trusted class of a text part, in words")
    assert type(model) is models.LongCtxQwen3_5ForCausalLM
    assert model.config.model_type == stock.config.model_type == "qwen3_5_text"
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))
    assert torch.equal(tokens_of(model), tokens_of(stock))
    keyed = AutoConfig.from_pretrained(tmp_path / "dual")
    made = AutoModelForCausalLM.from_config(keyed, trust_remote_code=True)
    assert type(made) is type(model)
    assert [patch.method for patch in applied(made)] == [METHOD]


def test_an_entry_of_the_outer_config_goes_with_the_others() -> None:
    from tests.test_vision_language import config

    keyed = extend_config(config(**{NAME: KEY}))
    assert getattr(keyed, NAME) is None
    assert getattr(extend_config(config(**{NAME: KEY}), METHOD).text_config, NAME) == KEY


def test_a_config_without_methods_leads_to_no_file_of_ours(folders: Folders, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(folders.dual)
    assert set(config.auto_map) >= {"AutoModel", "AutoModelForCausalLM"}
    LlamaForCausalLM.from_pretrained(folders.dual, config=hf_longctx.extend_config(config)).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.hub.stock_gguf import stock, write

    write(stock("llama", {"rope_type": "default"}), tmp_path / "model.gguf")
    expected = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    METHOD.apply(expected)
    model = cls().from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32, methods=METHOD)
    assert torch.equal(logits_of(model, IDS), logits_of(expected, IDS))
