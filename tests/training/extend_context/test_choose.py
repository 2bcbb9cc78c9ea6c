"""The rule that chooses one of the settings that were screened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.extend_context import choose
from recipes.extend_context.settings import DEFAULT


def row(
    what: str, far: float = 0.95, own: float = 0.98, nats: float = 0.05, hits: tuple[int, ...] = (20, 20, 20, 20)
) -> Any:
    """As `screen` writes it: pass keys and needles at 64k and at 16k."""
    beside = {"perplexity, 8192 over stock at 8192": 0.97, "perplexity, 65536 over itself at 8192": own}
    names = [f"{kind}, {length} tokens" for length in ("65,536", "16,384") for kind in ("passkey", "needle")]
    beside |= {choose.TOLD: nats} | dict(zip(names, hits, strict=True)) | {"tokens": 1, "last loss": 2.0}
    return {"what": f"{what}: perplexity, 65536 over stock at 8192", "value": far, "beside": beside}


def written(tmp_path: Path, *rows: Any, name: str = "screen.json") -> Path:
    file = tmp_path / name
    file.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return file


def chosen(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert choose.main([str(word) for word in words]) == 0
    return capsys.readouterr().out.strip()


def test_a_tenth_of_a_nat_weighs_as_much_as_all_at_a_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finds = row("all_facts+yarn_cool", nats=0.10, hits=(20, 20, 20, 20))
    keeps = row("all_facts+yarn_cold", nats=0.02, hits=(6, 6, 20, 20))
    assert chosen(capsys, written(tmp_path, finds, keeps)) == "all_facts+yarn_cold"
    forgets_less = row("all_facts+yarn_cool", nats=0.08, hits=(20, 20, 20, 20))
    file = written(tmp_path, forgets_less, name="other.json")
    assert chosen(capsys, written(tmp_path, keeps), file) == "all_facts+yarn_cool", "rows of several files"
    assert chosen(capsys, file, "--with", "no_retrieval") == "all_facts+yarn_cool+no_retrieval"


def test_likelier_answers_are_no_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has been trained on the stock model's answers may lift those beyond what they were."""
    finds = row("all_facts", nats=0.0, hits=(20, 20, 20, 20))
    lifts = row("near_facts", nats=-0.1, hits=(19, 20, 20, 20))
    assert chosen(capsys, written(tmp_path, finds, lifts)) == "all_facts"


def test_what_moved_away_while_likeliest_answers_became_likelier_has_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharper = row("near_facts", nats=-0.1, hits=(20, 20, 20, 20))
    sharper["beside"][choose.SAMPLED] = 0.08
    keeps = row("all_facts", nats=0.05, hits=(20, 20, 20, 20))
    keeps["beside"][choose.SAMPLED] = 0.01
    assert chosen(capsys, written(tmp_path, sharper, keeps)) == "all_facts"


def test_what_does_not_read_far_is_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However much it finds; nor what only reads its own short texts worse."""
    rows = row("yarn", far=0.999, nats=0.0), row("giraffe", own=1.01, nats=0.0), row("base", nats=0.2)
    file = written(tmp_path, *rows)
    assert chosen(capsys, file) == "", "the config as it is"
    table = chosen(capsys, file, "--table").splitlines()
    assert [line.split()[-1] for line in table] == ["setting", "base", "yarn", "giraffe"]
    assert choose.main([str(written(tmp_path, *rows[:2]))]) == 1
    assert "no setting reads far" in capsys.readouterr().err


def test_shares_of_the_stock_weights_are_a_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = row("yarn, 0.5 of the stock weights", nats=0.0)
    assert chosen(capsys, written(tmp_path, row("yarn"), half)) == "yarn+averaged"
    assert choose.main([str(written(tmp_path, row("yarn, 0.3 of the stock weights")))]) == 2
    assert "has no variant that sets averaged: 0.3 alone. Add one." in capsys.readouterr().err


def test_rows_without_what_is_compared_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = row("yarn") | {"value": None}
    untold = row("yarn")
    del untold["beside"][choose.TOLD]
    assert choose.main([str(written(tmp_path, empty, untold))]) == 2
    assert "no row has perplexities, nats and what was found" in capsys.readouterr().err
    assert chosen(capsys, written(tmp_path, empty, untold, row("giraffe"))) == "giraffe"


def test_the_committed_screen_is_read() -> None:
    """What `screen` writes today is what is read here."""
    found = choose.read([Path("recipes/benchmarks/results/extend_screen.json")], DEFAULT)
    assert {one.name for one in found} >= {"all_facts+yarn_cool", "all_facts+giraffe"}
    assert choose.ranked(found)[0].reads_far
    assert all(0 <= share <= 1 for one in found for share in one.found.values())
