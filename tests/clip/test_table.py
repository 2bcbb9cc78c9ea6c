"""The stretched table against the paper's loop."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.clip import is_interpolated, stretch_table, stretched_length
from tests.reference.clip import published, stretched


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("keep", [0, 1, 7, 20, 30, 63])
@pytest.mark.parametrize("length", [64, 77, 101, 248])
def test_table_equals_the_papers_loop(length: int, keep: int, ratio: int) -> None:
    table = torch.randn(length, 9, dtype=torch.float64)
    ours = stretch_table(table, keep, ratio)
    assert len(ours) == stretched_length(length, keep, ratio) == keep + ratio * (length - keep)
    torch.testing.assert_close(ours, stretched(table, keep, ratio), rtol=0, atol=1e-12)
    assert torch.equal(ours[:keep], table[:keep])
    assert torch.equal(ours[keep::ratio], table[keep:]), "trained rows stay among the others"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_20_and_4_are_the_published_table_bit_for_bit(dtype: torch.dtype) -> None:
    table = (torch.randn(77, 512) * 0.01).to(dtype)
    ours = stretch_table(table)
    assert ours.shape == (248, 512)
    assert ours.dtype == dtype
    assert torch.equal(ours, published(table))


@pytest.mark.parametrize(("length", "keep"), [(2, 0), (2, 1), (21, 20), (5, 3)])
def test_smallest_tables(length: int, keep: int) -> None:
    table = torch.randn(length, 3, dtype=torch.float64)
    torch.testing.assert_close(stretch_table(table, keep, 4), stretched(table, keep, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [2, 4, 16])
def test_interpolation_is_recognised_and_training_is_not(ratio: int, dtype: torch.dtype) -> None:
    # neighbours in CLIP's table are alike
    table = (torch.randn(77, 512).cumsum(0) * 0.003 + torch.randn(77, 512) * 0.01).to(dtype)
    longer = stretch_table(table, 20, ratio)
    assert not is_interpolated(table)
    assert is_interpolated(longer)
    assert not is_interpolated(longer + torch.randn_like(longer) * 0.002), "rows that training moved"
    assert not is_interpolated(torch.zeros(77, 8))
    assert not is_interpolated(torch.randn(3, 8))


@pytest.mark.parametrize(
    ("keep", "ratio", "says"),
    [
        (78, 4, "keep=78: expected 0 to 76"),
        (77, 4, "keep=77: expected 0 to 76"),
        (-1, 4, "keep=-1"),
        (20, 0, "ratio=0: expected 2 or more"),
        (20, 1, "ratio=1: expected 2 or more"),
        (20, 99_999_999, "ratio=99999999: a table of 5,699,999,963 positions; expected at most 1,000,000"),
        (20, 2.5, "ratio=2.5: expected a whole number"),
        (True, 4, "keep=True: expected a whole number"),
    ],
)
def test_wrong_settings_are_named(keep: int, ratio: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stretch_table(torch.randn(77, 4), keep, ratio)


def test_wrong_tables_are_named() -> None:
    with pytest.raises(ValueError, match="floating-point rows"):
        stretch_table(torch.zeros(77, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="floating-point rows"):
        stretch_table(torch.zeros(77))
    with pytest.raises(ValueError, match="two rows at least"):
        stretch_table(torch.zeros(1, 4), 0, 4)
