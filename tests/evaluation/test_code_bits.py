"""recipes/benchmarks/code_bits.py: a second bit finds more of the best keys, and heads without one have no such row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes.benchmarks import code_bits


def keys_of(D: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(D)
    k = torch.randn(2, 4000, D, generator=random) * torch.randn(2, 1, D, generator=random).exp()
    return torch.randn(2, 3, 6, D, generator=random), k


def test_two_bits_find_more_than_one_and_all_are_found_among_all() -> None:
    shares = code_bits.found(*keys_of(64), (20, 80, 4000))
    assert sorted(shares) == [(bits, n) for bits in (1, 2) for n in (20, 80, 4000)]
    assert shares[2, 20] > shares[1, 20] + 0.15
    assert shares[2, 80] > shares[1, 80] + 0.1
    assert shares[1, 4000] == shares[2, 4000] == 1


def test_heads_with_codes_of_one_bit_have_no_others() -> None:
    assert sorted(code_bits.found(*keys_of(128), (20,))) == [(1, 20)]


def test_a_rehearsal_writes_a_row_for_each_shortlist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code_bits.main(["--tiny", "--out", str(tmp_path), "--commit", "abc"])
    result = json.loads((tmp_path / "code_bits.json").read_text(encoding="utf-8"))
    assert result["commit"] == "abc"
    assert [one["what"].rpartition(" among ")[2] for one in result["rows"]] == [
        f"the best {n} by codes of 2 bits a channel" for n in (2, 8)
    ]
    for one in result["rows"]:
        assert 0 <= one["beside"]["codes of 1 bit"] <= one["value"] <= 1
        assert len(one["detail"]["layers"]) > 1
    with pytest.raises(SystemExit):
        code_bits.main(["--out", str(tmp_path)])
    assert "--documents is needed" in capsys.readouterr().err
