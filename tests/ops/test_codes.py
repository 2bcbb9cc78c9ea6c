"""Codes of one bit a channel: what they are, how far scores can be off, and that no key's code depends on another's."""

# G heads, R query heads of a group, L queries, S keys, D head dim, C channels
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.codes import BITS, Centre, channels, encode, in_steps, levels, score, turned
from tests.reference.lookup import code_scores, turn


def keys_of(D: int, S: int = 200, seed: int = 0) -> Tensor:
    """Keys as models have them: far from the origin, and wide in a few channels."""
    random = torch.Generator().manual_seed(seed)
    wide = torch.randn(2, 1, D, generator=random).exp()
    return torch.randn(2, S, D, generator=random) * wide + 3 * torch.randn(2, 1, D, generator=random)


def bits_of(words: Tensor) -> Tensor:
    """Each bit of a code, in the order of its channels."""
    return ((words[..., None] >> torch.arange(BITS)) & 1).flatten(-2) == 1


@pytest.mark.parametrize("D", [4, 64, 80, 96, 128])
def test_the_turn_keeps_products_and_is_the_same_as_in_the_reference(D: int) -> None:
    x = keys_of(D)[0]
    assert turned(x).shape[-1] % 32 == 0
    torch.testing.assert_close(turned(x) @ turned(x).T, x @ x.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(turned(x).double(), x.double() @ turn(D).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("D", [4, 64, 80, 96, 128])
def test_scores_are_those_of_the_reference_and_within_their_bound(D: int) -> None:
    k, q = keys_of(D), torch.randn(2, 3, 5, D, generator=torch.Generator().manual_seed(1))
    centre = Centre.of(k[:, :50])
    got = score(q, *encode(k, centre), centre)
    for g in range(2):
        for r in range(3):
            padded = torch.cat([q[g, r].double(), torch.zeros(195, D, dtype=torch.float64)])
            wanted = code_scores(padded, k[g].double(), 50)[:5]
            # an fp16 size that is rounded the other way is off by 2^-11
            torch.testing.assert_close(got[g, r].double(), wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))
    T = channels(D)
    rest_GST = turned(k - centre.mean_GD[:, None]) / centre.width_GC[:, None, :T]
    words, size = encode(k, centre)
    coded_GSC = torch.where(bits_of(words), 1.0, -1.0) * size.float()[..., None]
    values_GST = coded_GSC[..., :T] + (0.5 * coded_GSC[..., T:] if levels(D) == 2 else 0)
    apart_GS = (rest_GST - values_GST).norm(dim=-1)
    exact_GNC = (turned(q).repeat(1, 1, 1, levels(D)) * centre.width_GC[:, None, None]).flatten(1, 2)
    whole_GNC, step_GN1 = in_steps(turned(q).flatten(1, 2), centre.width_GC)
    assert whole_GNC.abs().max() <= 32
    assert torch.equal(whole_GNC, whole_GNC.round())
    rounded_GNC = whole_GNC * step_GN1
    bound = exact_GNC[..., :T].norm(dim=-1)[..., None] * apart_GS[:, None]
    bound += (exact_GNC - rounded_GNC).norm(dim=-1)[..., None] * coded_GSC.norm(dim=-1)[:, None]
    bound = bound.unflatten(1, q.shape[1:3])
    off = (got - torch.einsum("grld,gsd->grls", q, k)).abs()
    assert (off <= bound * 1.001 + 2e-3 * got.abs().amax()).all()
    assert off.mean() < bound.mean() / 4, "the bound is for the worst query"


def test_words_hold_the_signs_and_padding_adds_channels() -> None:
    k = keys_of(80)
    centre = Centre.of(k)
    words, size = encode(k, centre)
    assert words.dtype == torch.int32
    assert size.dtype == torch.float16
    assert words.shape == (2, 200, 3)
    positive = turned(k - centre.mean_GD[:, None]) >= 0
    for c in (0, 31, 32, 95):
        assert torch.equal((words[..., c // 32] >> (c % 32)) & 1 == 1, positive[..., c])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_has_the_same_code_alone_and_among_others(dtype: torch.dtype) -> None:
    k = keys_of(96).to(dtype)
    centre = Centre.of(k[:, :16])
    words, size = encode(k, centre)
    for n in (1, 7, 64):
        parts = [encode(part, centre) for part in k.split(n, 1)]
        assert torch.equal(torch.cat([part[0] for part in parts], 1), words)
        assert torch.equal(torch.cat([part[1] for part in parts], 1), size)


@pytest.mark.parametrize("D", [16, 40, 64])
def test_a_second_bit_says_which_numbers_are_large(D: int) -> None:
    k = keys_of(D)
    centre = Centre.of(k)
    words, size = encode(k, centre)
    T = channels(D)
    assert words.shape[-1] == 2 * T // BITS
    assert torch.equal(centre.width_GC[:, T:], centre.width_GC[:, :T] / 2)
    rest = turned(k - centre.mean_GD[:, None]) / centre.width_GC[:, None, :T]
    first, second = bits_of(words).split(T, -1)
    large = rest.abs() >= rest.abs().mean(-1, keepdim=True)
    near = (rest.abs() - rest.abs().mean(-1, keepdim=True)).abs() < 1e-5
    assert torch.equal(first, rest >= 0)
    assert ((first == second) == large)[~near].all()
    values = torch.where(first, 1.0, -1.0) + 0.5 * torch.where(second, 1.0, -1.0)
    off = (rest - size.float()[..., None] * values).norm(dim=-1)
    for other in (0.97, 1.03):  # of all sizes it is the one by which they are nearest
        assert (off <= (rest - other * size.float()[..., None] * values).norm(dim=-1) * 1.0001).all()
    signs = torch.where(first, 1.0, -1.0)
    alone = (rest - rest.abs().mean(-1, keepdim=True) * signs).norm(dim=-1)
    assert off.mean() < 0.65 * alone.mean(), "a second bit takes more than a third of what the first one leaves"


def test_keys_without_a_difference_have_codes() -> None:
    """The mean key itself is nothing but large numbers of size 0."""
    k = torch.zeros(1, 5, 64)
    words, size = encode(k, Centre(torch.zeros(1, 64), torch.ones(1, 128)))
    assert (size == 0).all()
    assert words.shape == (1, 5, 4)


def test_equal_keys_and_channels_that_hardly_vary_at_first_stay_finite() -> None:
    k = torch.ones(1, 40, 64)
    centre = Centre.of(k)
    assert torch.isfinite(score(torch.ones(1, 1, 1, 64), *encode(k * 1e4, centre), centre)).all()
    k = keys_of(64)
    k[:, :20] = k[:, :1] + 1e-6 * k[:, :20]
    centre = Centre.of(k[:, :20])
    assert torch.isfinite(encode(k, centre)[1]).all()


def test_mean_turn_width_and_size_all_help_to_find_the_best_key() -> None:
    """Among 64 of 4,000 keys by their codes is the best one far more often than by plain signs."""
    random = torch.Generator().manual_seed(2)
    k = keys_of(64, S=4000)[:1]
    q = k[:, torch.randint(4000, (200,), generator=random)] - k.mean(1, keepdim=True)
    q = (q + 0.5 * q.std() * torch.randn(q.shape, generator=random))[:, None]
    exact = torch.einsum("grld,gsd->grls", q, k)
    centre = Centre.of(k[:, :256])
    plain = torch.einsum("grld,gsd->grls", q, torch.where(k >= 0, 1.0, -1.0))

    def found(scores: Tensor) -> float:
        best = exact.argmax(-1, keepdim=True)
        return float((scores.topk(64, -1).indices == best).any(-1).float().mean())

    assert found(score(q, *encode(k, centre), centre)) > 0.9
    assert found(plain) < 0.7
