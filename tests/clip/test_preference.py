"""The decomposed preference score and its loss equal the paper's formulas, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from hf_longctx.clip import caption_embeddings, common_direction, preference_loss, preference_score
from tests.clip.diffusion import scoring_model
from tests.reference import long_align

CAPTIONS = ["a red cat. a dog!", "red cat dog " * 50, "a mat", ""]


@pytest.fixture
def scorer() -> tuple[CLIPModel, Any]:
    return scoring_model()


def embedded(counts: list[int], width: int = 6) -> list[Tensor]:
    """Segments of captions, which share a direction."""
    return [torch.randn(count, width, dtype=torch.float64) + 1 for count in counts]


def means(parts: list[Tensor]) -> Tensor:
    return torch.stack([F.normalize(one, dim=-1).mean(0) for one in parts])


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
def test_score_and_loss_are_the_papers(omega: float) -> None:
    parts = embedded([1, 4, 2, 9])
    images = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    expected = long_align.score(images, parts, omega)
    found = preference_score(images, means(parts), omega=omega)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    loss, slow = preference_loss(found, omega), long_align.loss(expected, omega)
    torch.testing.assert_close(loss, slow, rtol=1e-12, atol=1e-12)
    (gradient,), (by_hand,) = (torch.autograd.grad(one, images) for one in (loss, slow))
    torch.testing.assert_close(gradient, by_hand, rtol=1e-12, atol=1e-12)


def test_omega_takes_away_what_captions_share_and_nothing_else() -> None:
    texts, images = means(embedded([3] * 50)), torch.randn(50, 6, dtype=torch.float64)
    common = common_direction(texts)
    torch.testing.assert_close(common.norm(), torch.ones((), dtype=torch.float64))
    plain = (texts * F.normalize(images, dim=-1)).sum(-1)
    torch.testing.assert_close(preference_score(images, texts, omega=1.0), plain)
    shared = common.expand(50, -1)
    assert preference_score(shared, texts, omega=0.0).abs().max() < 1e-12
    relevant, half = (preference_score(images, texts, omega=omega) for omega in (0.0, 0.5))
    torch.testing.assert_close(half, (relevant + plain) / 2)


def test_only_images_get_gradients_and_half_precision_is_summed_in_full() -> None:
    texts = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    images = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    score = preference_score(images, texts)
    assert score.dtype == torch.float32
    preference_loss(score).backward()
    assert texts.grad is None
    assert images.grad is not None


def test_common_direction_of_several_processes_is_that_of_the_whole_batch() -> None:
    parts = means(embedded([1, 2, 3, 1, 2]))
    images = torch.randn(5, 6, dtype=torch.float64)
    whole = preference_score(images, parts)
    halves = parts[:4], parts[4:]
    sums = torch.stack([half.sum(0) for half in halves])

    def gather(mine: Tensor) -> Tensor:  # as accelerate does, of processes with 4 and 1 captions
        assert any(torch.allclose(mine[0], one) for one in sums)
        return sums

    first = preference_score(images[:4], halves[0], gather=gather)
    second = preference_score(images[4:], halves[1], gather=gather)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(preference_score(images[4:], halves[1], common=common_direction(parts)), whole[4:])


def test_captions_are_the_mean_of_their_segments(scorer: tuple[CLIPModel, Any]) -> None:
    model, tokenizer = scorer
    found = caption_embeddings(model, tokenizer, CAPTIONS)
    sentences = [["a red cat.", "a dog!"], ["red cat dog " * 25] * 2, ["a mat"], [""]]
    with torch.no_grad():
        by_hand = [
            [
                F.normalize(model.get_text_features(**tokenizer(one, return_tensors="pt")).pooler_output[0], dim=0)
                for one in each
            ]
            for each in sentences
        ]
    expected = torch.stack([torch.stack(each).mean(0) for each in by_hand])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # another padded length
    assert not found.requires_grad

    class Processor:
        pass

    processor = Processor()
    processor.tokenizer = tokenizer  # type: ignore[attr-defined]
    assert torch.equal(caption_embeddings(model, processor, CAPTIONS), found)
    published = caption_embeddings(model, tokenizer, ["A 3.5 m cat"], splitter="longalign")
    twice = caption_embeddings(model, tokenizer, ["A 3.|5 m cat."], splitter=lambda text: text.split("|"))
    torch.testing.assert_close(published, twice)


def test_a_step_along_the_gradient_makes_an_image_fit_better(scorer: tuple[CLIPModel, Any]) -> None:
    model, tokenizer = scorer
    texts = caption_embeddings(model, tokenizer, CAPTIONS)
    pixels = torch.rand(4, 3, 16, 16, requires_grad=True)
    before = preference_loss(preference_score(model.get_image_features(pixels).pooler_output, texts))
    (gradient,) = torch.autograd.grad(before, pixels)
    moved = pixels - 1e-2 * gradient / gradient.norm()
    after = preference_loss(preference_score(model.get_image_features(moved).pooler_output, texts))
    assert after < before


def test_wrong_input_is_named(scorer: tuple[CLIPModel, Any]) -> None:
    model, tokenizer = scorer
    two = torch.randn(2, 6)
    for call, says in (
        (lambda: preference_score(two, two[:, :5]), r"\[2, 6\] and texts of shape \[2, 5\]: expected the same"),
        (lambda: preference_score(two[0], two[0]), r"expected the same \[pairs, width\]"),
        (lambda: preference_score(two[:1], two[:1]), "one caption: the part that captions share cannot be separated"),
        (lambda: preference_score(two, two, common=torch.ones(5)), r"common of shape \[5\]: expected \[6\]"),
        (lambda: preference_score(two, two, omega=1.5), "omega=1.5: expected a number from 0 to 1"),
        (lambda: preference_loss(two[0], omega=True), "omega=True"),
        (lambda: caption_embeddings(model, tokenizer, "a cat"), "captions='a cat': expected a list of strings"),
        (lambda: caption_embeddings(model, tokenizer, []), "one at least"),
        (lambda: caption_embeddings(model.text_model, tokenizer, ["a"]), "expected a CLIPModel"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
