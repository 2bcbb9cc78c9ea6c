"""Encoder-decoders, and the decoders that transformers loads of them alone, are refused wherever a model is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForCausalLM, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

import hf_longctx
from hf_longctx import XL3M, LMInfinite, RopeScaling
from hf_longctx.editing import EditSession
from hf_longctx.hub import load
from tests.cli.test_cli import complaint, run
from tests.tiny import VOCAB, build, text, tiny, tokenizer

IDS = text(1, 40)
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 1}
HEADS = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 4))}


def bart() -> Any:
    config = BartConfig(**SIZES, **HEADS, encoder_ffn_dim=32, decoder_ffn_dim=32, bos_token_id=1, eos_token_id=2)
    return build(BartForConditionalGeneration, config)


def t5() -> Any:
    return build(T5ForConditionalGeneration, T5Config(**SIZES, d_kv=8, d_ff=48, num_layers=1, num_heads=4))


USES: dict[str, Callable[[Any], Any]] = {
    "xl3m": lambda model: model.generate(IDS, custom_generate=XL3M(window=200), question=8, max_new_tokens=2),
    "share_beginning": lambda model: model.generate(
        IDS, custom_generate=hf_longctx.share_beginning, num_return_sequences=2, do_sample=True, max_new_tokens=2
    ),
    "stream": lambda model: hf_longctx.stream(model, IDS[0].tolist()),
    "stream without a bound": lambda model: hf_longctx.stream(model, IDS[0].tolist(), bounded=False),
    "shared_prefix": lambda model: hf_longctx.shared_prefix(model, IDS).__enter__(),
    "edit": lambda model: EditSession(model, tokenizer(), "w3 w4 w5").complete(max_new_tokens=2),
    "method": LMInfinite(n_local=8).apply,
    "scaling": RopeScaling(factor=2.0).apply,
    "check": hf_longctx.check,
}


@pytest.mark.parametrize("make", [bart, t5])
@pytest.mark.parametrize("use", USES)
def test_refused_wherever_it_is_given(use: str, make: Callable[[], Any]) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"causal language models"):
        USES[use](model)
    assert not hf_longctx.applied(model)


def test_a_decoder_is_not_loaded_without_its_encoder(tmp_path: Path) -> None:
    whole, decoder, other = tmp_path / "whole", tmp_path / "decoder", tmp_path / "other"
    bart().save_pretrained(whole)
    build(BartForCausalLM, bart().config).save_pretrained(decoder)  # saved as what it is
    tiny().save_pretrained(other)
    for folder in (whole, decoder, other):
        tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"encoder-decoder .*BartForConditionalGeneration"):
        load(whole)
    assert type(load(decoder)[0]) is BartForCausalLM
    assert torch.is_tensor(load(other)[0].lm_head.weight)
    document = tmp_path / "document.txt"
    document.write_text("w3 w4 w5", encoding="utf-8")
    assert "encoder-decoder" in complaint(run("generate", whole, "--document", document, "--question", "w4"))
