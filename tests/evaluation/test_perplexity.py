from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longctx.evaluation.perplexity import LengthScore, fixed_targets, perplexity, read

# The same sums in another order (chunked against whole attention), fp32.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(model: Any, input_ids: Tensor) -> Tensor:
    """NLL of every token but the first, from one forward pass over everything."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("n_targets", "chunk", "score_chunk"),
    [(20, 16, 7), (1, 1000, 1000), (100, 7, 100), (96, 32, 32), (99, 5, 13)],
    ids=["odd pieces", "one target", "every token", "whole pieces", "all but one"],
)
def test_reading_in_chunks_equals_one_forward(
    request: pytest.FixtureRequest, family: str, batch: int, n_targets: int, chunk: int, score_chunk: int
) -> None:
    model = request.getfixturevalue(family)
    x = ids(batch, 101)
    found = read(model, x, n_targets=n_targets, chunk=chunk, score_chunk=score_chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole(model, x)[:, -n_targets:], **TOLERANCE)


def test_read_never_holds_more_logits_than_a_piece(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, forward = [], llama.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        shapes.append((kwargs["input_ids"].shape[1], output.logits.shape[1]))
        return output

    monkeypatch.setattr(llama, "forward", watched)
    read(llama, ids(1, 101), n_targets=20, chunk=32, score_chunk=8)
    # 80 tokens of context, then 20 that predict the targets; the last token is never read.
    assert shapes == [(32, 1), (32, 1), (16, 1), (8, 8), (8, 8), (4, 4)]


def test_progress_counts_every_token_read(llama: Any) -> None:
    steps: list[int] = []
    read(llama, ids(2, 50), n_targets=10, chunk=16, score_chunk=16, progress=steps.append)
    assert sum(steps) == 2 * 49


class Fixed:
    """Gives every next token probability 1/2 for id 0, 1/4 for id 1 and 1/8 for ids 2 and 3."""

    training = False
    device = torch.device("cpu")

    def __call__(self, *, input_ids: Tensor, past_key_values: Any, use_cache: bool, logits_to_keep: int) -> Any:
        logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(*input_ids.shape, 4)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], past_key_values=object())


def test_nll_and_perplexity_by_hand() -> None:
    model: Any = Fixed()
    ln2 = math.log(2)
    found = read(model, torch.tensor([[3, 0, 1, 2, 0]]), n_targets=3, chunk=2, score_chunk=2)
    torch.testing.assert_close(found, torch.tensor([[2 * ln2, 3 * ln2, ln2]]))
    # Means of 1 and 3 halvings: 2 ** 2, not the mean of 2 and 8.
    assert perplexity([ln2, 3 * ln2]) == pytest.approx(4)
    assert perplexity([1e4]) == math.inf
    assert math.isnan(perplexity([math.nan]))


def test_fixed_targets_scores_the_same_tokens_at_every_length(llama: Any) -> None:
    documents = [ids(1, 60, seed)[0] for seed in (1, 2)]
    scores = fixed_targets(llama, documents, [20, 50], n_targets=8, chunk=16, score_chunk=5)
    assert [score.length for score in scores] == [20, 50]
    for score in scores:
        expected = [whole(llama, d[None, -score.length :])[:, -8:].mean().item() for d in documents]
        assert score.nll == pytest.approx(expected, abs=1e-5)
        assert score.perplexity == pytest.approx(math.exp(sum(expected) / 2), rel=1e-5)
    assert scores[0].nll != scores[1].nll


def test_fixed_targets_puts_bos_in_place_of_the_first_token(llama: Any) -> None:
    document = ids(1, 40)[0]
    (score,) = fixed_targets(llama, [document], [20], n_targets=8, bos_token_id=256)
    window = torch.cat([torch.tensor([256]), document[-19:]])
    assert score.nll[0] == pytest.approx(whole(llama, window[None])[:, -8:].mean().item(), abs=1e-5)


def test_a_length_score_is_a_value() -> None:
    assert LengthScore(length=8, n_targets=2, nll=(0.0,)).perplexity == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_targets": 0}, "expected 1 to 9"),
        ({"n_targets": 10}, "text of 10 tokens"),
        ({"n_targets": 2, "chunk": 0}, "chunk=0"),
        ({"n_targets": 2, "score_chunk": 0}, "score_chunk=0"),
    ],
)
def test_read_refuses(llama: Any, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(llama, ids(1, 10), **kwargs)


def test_read_refuses_wrong_shapes_and_train_mode(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"ids\[None\]"):
        read(llama, ids(1, 10)[0], n_targets=2)
    with pytest.raises(ValueError, match="integers"):
        read(llama, torch.zeros(1, 10), n_targets=2)
    with pytest.raises(ValueError, match="eval"):
        read(llama.train(), ids(1, 10), n_targets=2)


def test_read_refuses_a_model_without_a_cache(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "forward", lambda **_: SimpleNamespace(logits=torch.zeros(1, 1, 4)))
    with pytest.raises(ValueError, match="returned no cache"):
        read(llama, ids(1, 10), n_targets=2)


def test_fixed_targets_refuses(llama: Any) -> None:
    documents = [ids(1, 40)[0], ids(1, 30)[0]]
    with pytest.raises(ValueError, match="Document 1 has 30 tokens, the longest context length is 40") as error:
        fixed_targets(llama, documents, [20, 40], n_targets=8)
    assert "shorter lengths" in str(error.value)
    with pytest.raises(ValueError, match="no context before n_targets=20"):
        fixed_targets(llama, documents, [20], n_targets=20)
    with pytest.raises(ValueError, match="0 documents"):
        fixed_targets(llama, [], [20], n_targets=8)
    with pytest.raises(ValueError, match=r"shape \(1, 40\)"):
        fixed_targets(llama, [ids(1, 40)], [20], n_targets=8)
