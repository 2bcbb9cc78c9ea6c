"""Lengths and sizes as people write them."""

from __future__ import annotations

import pytest

from hf_longctx.console.units import parse_bytes, parse_lengths, parse_tokens, show_bytes, show_seconds


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("128k", 131_072),
        ("1M", 1_000_000),
        ("1.5m", 1_500_000),
        ("0.5k", 512),
        ("200_000", 200_000),
        ("8,192", 8192),
        (7, 7),
    ],
)
def test_lengths(text: str | int, tokens: int) -> None:
    assert parse_tokens(text) == tokens


def test_lists_of_lengths() -> None:
    assert parse_lengths("4096, 8k,1M,1.5k") == [4096, 8192, 1_000_000, 1536]
    assert parse_lengths("0,-5") == [0, -5], "the caller says what its lengths may be"
    for text in ("", "8k,", "4x", "1e6", "8k;16k"):
        with pytest.raises(ValueError, match=r"--lengths .*expected whole numbers of tokens separated by commas"):
            parse_lengths(text, "--lengths")


@pytest.mark.parametrize("text", ["", "0", "-1", "-4k", "1.5", "1G", "k", "ten", "1e6", "nan"])
def test_what_is_no_length_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a whole number of tokens.*128k \(131,072\) or 1M \(1,000,000\)"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("24G", 24 * 10**9),
        ("24 gib", 24 * 2**30),
        ("0.5TiB", 2**39),
        ("512MiB", 2**29),
        (1000, 1000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "-24GiB", "0GiB", "GiB", "24 gigs", 0, -5, True])
def test_what_is_no_size_is_refused_with_examples(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"expected a size with its unit, such as 24GiB"):
        parse_bytes(text)


def test_shown_sizes_and_times() -> None:
    assert [show_bytes(n) for n in (24 * 2**30, 2**20)] == ["24.0 GiB", "1 MiB"]
    assert [show_bytes(n) for n in (0, 1023, 2048)] == ["0 B", "1023 B", "2 KiB"]
    assert [show_seconds(s) for s in (0.06, 3.14, 600, 7200)] == ["60 ms", "3.1 s", "10 min", "2.0 h"]
