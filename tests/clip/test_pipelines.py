"""Tiny Stable Diffusion and SDXL pipelines of diffusers make images of long prompts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longctx.clip import encode_long_prompt
from tests.clip.diffusion import scoring_model, sdxl, stable_diffusion
from tests.reference import long_align

pytest.importorskip("diffusers")

PIPELINES: dict[str, Callable[..., Any]] = {"sd": stable_diffusion, "sdxl": sdxl}
LONG = "a red cat sits on a mat. " * 20 + "a dog"  # 162 tokens


def image(pipeline: Any, **prompt: Any) -> torch.Tensor:
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    return pipeline(**prompt, **size, generator=torch.Generator().manual_seed(1)).images


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_word_far_beyond_the_encoders_limit_changes_the_image(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    other = LONG.replace("dog", "cat")
    assert torch.equal(image(pipeline, prompt=LONG), image(pipeline, prompt=other)), "what stock cuts off is not seen"
    one, two = (image(pipeline, **encode_long_prompt(pipeline, text)) for text in (LONG, other))
    assert one.shape == (1, 3, 16, 16)
    assert one.isfinite().all()
    assert not torch.equal(one, two)
    again = image(pipeline, **encode_long_prompt(pipeline, LONG, "red. " * 30))
    assert not torch.equal(one, again), "the negative prompt counts"


@pytest.mark.parametrize("kind", PIPELINES)
def test_batches_and_several_images_a_prompt(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    prompt = encode_long_prompt(pipeline, [LONG, "a dog", ""], ["a cat", "", LONG])
    images = image(pipeline, **prompt, num_images_per_prompt=2)
    assert images.shape == (6, 3, 16, 16)
    assert image(pipeline, **prompt, guidance_scale=1.0).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("clip_skip", [None, 0, 1])
@pytest.mark.parametrize("negative", ["a dog", "a red cat sits"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_short_prompts_have_the_states_that_the_pipeline_gives_them(
    kind: str, negative: str, clip_skip: int | None
) -> None:
    pipeline = PIPELINES[kind]()
    if not hasattr(pipeline.text_encoder, "text_model"):  # where diffusers looks for its norm, which transformers moved
        vars(pipeline.text_encoder)["text_model"] = pipeline.text_encoder
    found = encode_long_prompt(pipeline, "a red cat sits", negative, clip_skip=clip_skip)
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, "clip_skip": clip_skip}
    stock = pipeline.encode_prompt("a red cat sits", negative_prompt=negative, **asked)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    assert len(found) == len(stock) == {"sd": 2, "sdxl": 4}[kind]
    for name, words, expected in zip(names, (5, 3 if negative == "a dog" else 5, None, None), stock, strict=False):
        mine = found[name] if "pooled" in name else found[name][:, :words]
        yours = expected if "pooled" in name else expected[:, :words]
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-5)


def test_layers_are_skipped_as_sdxl_does() -> None:
    pipeline = sdxl()
    stock = pipeline.encode_prompt("a red cat", device="cpu", do_classifier_free_guidance=False, clip_skip=1)[0]
    found = encode_long_prompt(pipeline, "a red cat", clip_skip=1)["prompt_embeds"]
    torch.testing.assert_close(found[:, :4], stock[:, :4], rtol=1e-5, atol=1e-5)


def test_no_negative_prompt_is_what_the_pipeline_makes_of_it() -> None:
    zeros = encode_long_prompt(sdxl(), "a cat")
    assert not zeros["negative_prompt_embeds"].any()
    assert not zeros["negative_pooled_prompt_embeds"].any()
    assert zeros["negative_prompt_embeds"].shape == zeros["prompt_embeds"].shape
    assert encode_long_prompt(sdxl(), "a cat", "")["negative_prompt_embeds"].all()
    assert encode_long_prompt(sdxl(force_zeros_for_empty_prompt=False), "a cat")["negative_pooled_prompt_embeds"].all()
    assert encode_long_prompt(stable_diffusion(), "a cat")["negative_prompt_embeds"].all()


def test_textual_inversions_of_several_vectors_are_read() -> None:
    pipeline = stable_diffusion()
    pipeline.load_textual_inversion(torch.randn(3, 32), token="<mine>")
    found = encode_long_prompt(pipeline, "a <mine> cat. a dog")["prompt_embeds"][0]
    written = ["a <mine> <mine>_1 <mine>_2 cat.", "a dog"]
    by_hand = long_align.encoded(pipeline.tokenizer, pipeline.text_encoder, written)
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)
    assert long_align.words(pipeline.tokenizer, written[0]) == 7


def test_encoders_are_found_or_missed_by_name() -> None:
    pipeline = sdxl()
    both = [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]
    expected = encode_long_prompt(both, LONG, "a dog")
    for name, tensor in encode_long_prompt(pipeline, LONG, "a dog").items():
        assert torch.equal(tensor, expected[name])
    pipeline.tokenizer = pipeline.text_encoder = None  # as SDXL's refiner
    alone = encode_long_prompt(pipeline, LONG, "a dog")
    torch.testing.assert_close(alone["prompt_embeds"], expected["prompt_embeds"][..., 32:], rtol=1e-6, atol=1e-6)
    pipeline.text_encoder_2 = None
    with pytest.raises(ValueError, match="was loaded without its text encoders"):
        encode_long_prompt(pipeline, LONG)
    pipeline.text_encoder_3 = both[0][1]  # as Stable Diffusion 3
    with pytest.raises(ValueError, match=r"reads with three text encoders.*max_sequence_length"):
        encode_long_prompt(pipeline, LONG)


def test_lines_of_the_guide_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny pipeline in a folder of that name, at its size."""
    guide = (Path(__file__).parents[2] / "docs/clip.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (encoding,), (reward,) = ([one for one in blocks if name in one] for name in ("encode_long_prompt", "preference"))
    monkeypatch.chdir(tmp_path)
    folder = re.search(r'from_pretrained\("(.+?)"', encoding)
    assert folder
    pipeline = sdxl()
    pipeline.save_pretrained(folder[1])
    stock, size = type(pipeline).__call__, {"height": 16, "width": 16, "num_inference_steps": 2}
    monkeypatch.setattr(type(pipeline), "__call__", lambda self, **given: stock(self, **given, **size))
    names: dict[str, Any] = {}
    exec(encoding, names)
    assert list(tmp_path.glob("*.png"))
    assert names["prompt"]["prompt_embeds"].shape == (1, 240, 56)
    chance = torch.rand(2, 3, 16, 16, requires_grad=True)
    scorer, tokenizer = scoring_model()
    names |= {"scorer": scorer, "tokenizer": tokenizer, "captions": [names["story"], "a dog"], "pixels": chance}
    exec(reward, names)
    assert names["loss"].requires_grad
