"""SmolLM2-135M-Instruct as the demo and the README use it."""

from __future__ import annotations

from typing import Any

import pytest

from hf_longctx.hub import load

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def smollm2() -> Any:
    pytest.importorskip("gguf")
    try:
        return load("smollm2-135m-instruct", device="cpu")
    except OSError as error:
        pytest.skip(f"the model cannot be had: {error}")


def test_it_continues_sensibly(smollm2: Any) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(output[0]).startswith("The capital of France is Paris")


def test_its_tokenizer_is_the_original_s(smollm2: Any) -> None:
    model, tokenizer = smollm2
    assert tokenizer.tokenize("\n\n 007") == ["ĊĊĠ", "0", "0", "7"]
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
