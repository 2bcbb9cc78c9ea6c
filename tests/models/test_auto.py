"""A dual-mode folder through the Auto classes and pipelines: stock or extended, as `trust_remote_code` says."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, pipeline

from hf_longctx import applied, models
from tests.hooks.test_startup import run
from tests.models.conftest import IDS, METHOD, Folders, tokens_of
from tests.tiny import build, config_of, logits_of, tokenizer

HEADS = {
    "AutoModel": "LlamaModel",
    "AutoModelForCausalLM": "LlamaForCausalLM",
    "AutoModelForSequenceClassification": "LlamaForSequenceClassification",
    "AutoModelForTokenClassification": "LlamaForTokenClassification",
}


@pytest.mark.floor
@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("auto", HEADS)
def test_the_class_that_trust_gives(auto: str, trust: bool | None, folders: Folders) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_pretrained(folders.dual, trust_remote_code=trust)
    stock = getattr(transformers, HEADS[auto])
    assert type(model) is (getattr(models, f"LongCtx{HEADS[auto]}") if trust else stock)
    # hf_longctx is imported, so that the stock class reads the entry as well
    assert [patch.method for patch in applied(model)] == [METHOD]
    torch.manual_seed(0)
    other = stock.from_pretrained(folders.stock)
    METHOD.apply(other)
    assert torch.equal(model(IDS, use_cache=False)[0], other(IDS, use_cache=False)[0])
    plain = getattr(transformers, auto).from_pretrained(folders.stock, trust_remote_code=trust)
    assert type(plain) is stock
    assert applied(plain) == []


def test_a_stock_process_after_a_trusted_load(folders: Folders) -> None:
    """In a process that never imports us by itself, what is loaded with trust changes nothing for other folders."""
    code = """
import pickle, sys, torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
def logits(folder, **kwargs):
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    return type(model).__name__, model(torch.load("ids.pt")).logits
first = logits("stock")
untrusted = logits("dual")
assert untrusted[0] == first[0] == "LlamaForCausalLM" and torch.equal(untrusted[1], first[1])
assert "hf_longctx" not in sys.modules
ours = logits("dual", trust_remote_code=True)
assert ours[0] == "LongCtxLlamaForCausalLM" and torch.equal(ours[1], torch.load("extended.pt"))
again = logits("stock")
assert again[0] == "LlamaForCausalLM" and torch.equal(again[1], first[1])
with open("model.pickle", "rb") as file:
    copy = pickle.load(file)
assert type(copy).__name__ == "LongCtxLlamaForCausalLM" and torch.equal(copy(torch.load("ids.pt")).logits, ours[1])
print("as it should be")
"""
    here = folders.stock.parent
    model = models.LongCtxLlamaForCausalLM.from_pretrained(folders.dual)
    (here / "model.pickle").write_bytes(pickle.dumps(model))
    torch.save(IDS, here / "ids.pt")
    torch.save(folders.extended, here / "extended.pt")
    assert run(code, here) == "as it should be\n"


@pytest.mark.floor
def test_generated_tokens(folders: Folders) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders.dual, trust_remote_code=True)
    assert torch.equal(tokens_of(model), folders.tokens)


def test_from_a_config(folders: Folders) -> None:
    config = AutoConfig.from_pretrained(folders.dual)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert type(model) is models.LongCtxLlamaForCausalLM
    model.load_state_dict(LlamaForCausalLM.from_pretrained(folders.stock).state_dict())
    assert torch.equal(logits_of(model.eval(), IDS), folders.extended)


@pytest.mark.parametrize("family", ["GPTNeoXForCausalLM", "Gemma3ForConditionalGeneration"])
def test_other_families_keep_their_class(family: str, tmp_path: Path) -> None:
    if family.startswith("GPT"):
        stock: Any = build(getattr(transformers, family), config_of("gpt_neox"))
    else:
        from tests.test_vision_language import model as vision_language

        stock = vision_language()
    stock.save_pretrained(tmp_path / "stock")
    cls = getattr(models, f"LongCtx{family}")
    cls.from_pretrained(tmp_path / "stock", methods=METHOD).save_pretrained(tmp_path / "dual")
    METHOD.apply(stock)
    auto = AutoModelForCausalLM if family.startswith("GPT") else transformers.AutoModelForImageTextToText
    model = auto.from_pretrained(tmp_path / "dual", trust_remote_code=True)
    assert type(model) is cls
    assert torch.equal(logits_of(model, IDS), logits_of(stock, IDS))
    assert torch.equal(tokens_of(model), tokens_of(stock))


@pytest.mark.parametrize("trust", [None, False, True])
def test_pipelines(trust: bool | None, folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline("text-generation", str(folders.dual), trust_remote_code=trust)
    assert type(pipe.model) is (models.LongCtxLlamaForCausalLM if trust else LlamaForCausalLM)
    words = " ".join(f"w{i}" for i in IDS[0].tolist())
    found = pipe(words, max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert found == tokenizer().decode(folders.tokens[0, IDS.shape[1] :])


@pytest.fixture
def errors() -> Any:
    """What transformers logs of pipelines, which does not reach pytest."""
    records: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers.pipelines.base")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_pipelines_know_our_classes_and_still_refuse_others(folders: Folders, errors: list[str]) -> None:
    load = models.LongCtxLlamaForCausalLM.from_pretrained
    pipeline("text-generation", model=load(folders.dual), tokenizer=tokenizer())
    assert errors == []
    pipeline("text-classification", model=load(folders.dual), tokenizer=tokenizer())
    assert len(errors) == 1
    assert "The model 'LlamaForCausalLM' is not supported for text-classification" in errors[0]
    pipeline("text-generation", model=LlamaForCausalLM.from_pretrained(folders.stock), tokenizer=tokenizer())
    assert len(errors) == 1


def test_a_pipeline_of_a_stock_model_where_only_the_package_was_imported(folders: Folders) -> None:
    code = """
import sys, hf_longctx
from transformers import pipeline
pipeline("text-generation", "stock")
assert not {"hf_longctx.patch", "hf_longctx.hooks.transformers"} & set(sys.modules)
print("stock")
"""
    assert run(code, folders.stock.parent) == "stock\n"
