"""Segments of long prompts, and the preference score, on a GPU as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx.clip import caption_embeddings, encode_long_prompt, preference_loss, preference_score
from tests.clip.diffusion import bytes_tokenizer, encoder, projecting, scoring_model

pytestmark = pytest.mark.gpu

PROMPTS = ["A red cat sits on a mat. The dog! " * 8, "red cat dog " * 50, ""]
# of the largest value; CPU and GPU sum in other orders
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def close(one: torch.Tensor, two: torch.Tensor, tolerance: float) -> bool:
    return bool((one.float().cpu() - two.float()).abs().max() <= tolerance * two.float().abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_long_prompts_are_as_on_the_cpu(dtype: torch.dtype) -> None:
    first, second = bytes_tokenizer(), bytes_tokenizer(pad="!")
    pairs: list[tuple[Any, Any]] = [(first, encoder(first)), (second, projecting(second))]
    expected = encode_long_prompt(pairs, PROMPTS, "a dog")
    found = encode_long_prompt([(t, model.to("cuda", dtype)) for t, model in pairs], PROMPTS, "a dog")
    for name, tensor in found.items():
        assert (tensor.device.type, tensor.dtype) == ("cuda", dtype)
        assert close(tensor, expected[name], TOLERANCE[dtype]), name


def test_encoders_on_different_devices_are_joined() -> None:
    first, second = bytes_tokenizer(), bytes_tokenizer(pad="!")
    pairs: list[tuple[Any, Any]] = [(first, encoder(first)), (second, projecting(second).to("cuda"))]
    assert encode_long_prompt(pairs, PROMPTS, "a dog")["prompt_embeds"].device.type == "cuda"


def test_preference_is_as_on_the_cpu() -> None:
    model, tokenizer = scoring_model()
    captions, pixels = ["a red cat. a dog!", "red cat dog " * 50, "a mat"], torch.rand(3, 3, 16, 16)

    def loss(device: str) -> torch.Tensor:
        scorer = model.to(device)
        images = scorer.get_image_features(pixels.to(device)).pooler_output
        return preference_loss(preference_score(images, caption_embeddings(scorer, tokenizer, captions)))

    expected = loss("cpu").detach()
    assert close(loss("cuda").detach(), expected, 1e-3)
