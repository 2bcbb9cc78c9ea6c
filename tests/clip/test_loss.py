"""Primary component matching: the slow reference's values and gradients, on one process and on two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx.clip import contrastive_loss, long_clip_loss, primary_components
from tests.clip.two import SCALE, WIDTH, K, embeddings
from tests.reference import pcm


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [K + 2, 19])
def test_loss_equals_the_reference_with_gradients(rows: int, smoothing: float) -> None:
    ours, theirs = embeddings(rows), embeddings(rows)
    found = long_clip_loss(*ours, SCALE, components=K, label_smoothing=smoothing)
    found.total.backward()
    (expected,) = pcm.loss(*([one] for one in theirs), SCALE, k=K, eps=smoothing)
    expected.backward()
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
    assert found.total.item() == pytest.approx(found.long.item() + found.short.item())


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    single = [one.detach().float() for one in embeddings(40)]
    exact = long_clip_loss(*single, 100.0, components=K).total
    half = long_clip_loss(*(one.bfloat16() for one in single), 100.0, components=K).total
    assert half.dtype == torch.float32
    assert abs(half - exact) < 0.05 * exact + 0.05  # 8 bits of each embedding, times a scale of 100


def test_components_keep_what_varies_most_and_forget_the_rest() -> None:
    strong = torch.randn(200, 3) @ torch.randn(3, WIDTH) * 5
    features = strong + 0.01 * torch.randn(200, WIDTH) + torch.randn(WIDTH)
    kept = primary_components(features, 3)
    assert torch.linalg.matrix_rank(kept - kept.mean(0), atol=1e-2) == 3
    assert (kept - features).abs().max() < 0.06
    torch.testing.assert_close(kept.mean(0), features.mean(0), rtol=1e-4, atol=1e-4)


def test_equal_variances_have_a_finite_gradient() -> None:
    """Autograd through a singular value decomposition gives nan here."""
    features = torch.eye(8).repeat(3, 1).requires_grad_()
    (primary_components(features, 4) * torch.randn(24, 8)).sum().backward()
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "components", "words"),
    [
        ((33, 64), 32, "at least 34 pairs per process, gather before"),
        ((64, 32), 32, "has at most 32 directions"),
        ((64, 64), 0, "expected a whole number from 1 on"),
        ((4, 4, 4), 2, r"expected floating-point \[batch, width\]"),
    ],
)
def test_batch_that_cannot_carry_the_components_is_refused(shape: Any, components: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        primary_components(torch.randn(shape), components)


def test_captions_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="a caption for each image"):
        contrastive_loss(torch.randn(4, 8), torch.randn(5, 8), 1.0)
    with pytest.raises(ValueError, match="nothing to compare it with"):
        contrastive_loss(torch.randn(1, 8), torch.randn(1, 8), 1.0)


@pytest.mark.parametrize("gathered", [False, True], ids=["local", "gathered"])
def test_two_processes_equal_the_reference_with_gradients(gathered: bool, two_processes: list[dict[str, Any]]) -> None:
    found = [one["loss"][str(gathered)] for one in two_processes]
    every = [embeddings(9, seed=rank) for rank in range(2)]
    expected = pcm.loss(*(list(one) for one in zip(*every, strict=True)), SCALE, k=K, eps=0.1, gathered=gathered)
    sum(expected).backward()  # type: ignore[union-attr]
    for rank, one in enumerate(found):
        torch.testing.assert_close(one["loss"], expected[rank].detach(), rtol=1e-10, atol=1e-12)
        for grad, embedding in zip(one["grads"], every[rank], strict=True):
            torch.testing.assert_close(grad, embedding.grad, rtol=1e-8, atol=1e-10)


def test_processes_with_different_batches_are_told_so(two_processes: list[dict[str, Any]]) -> None:
    assert all("the processes hold [2, 3] rows" in one["loss"]["unequal"] for one in two_processes)
