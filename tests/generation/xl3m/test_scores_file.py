"""Scores are kept: a search that was interrupted goes on, and one of a changed text scores what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.generation.xl3m import XL3M, reading, scoring
from hf_longctx.generation.xl3m.reading import SourceError
from hf_longctx.generation.xl3m.scoring import Scorer
from tests.tiny import text, tiny

WINDOW, QUESTION = 96, 6
SMALL = XL3M(segment=16, overlap=4, key_context=40)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Segments of every forward, eight at a time."""
    counts: list[int] = []
    stock = Scorer.__call__

    def counting(self: Scorer, ids_NS: Tensor) -> Tensor:
        counts.append(len(ids_NS))
        return stock(self, ids_NS)

    monkeypatch.setattr(Scorer, "__call__", counting)
    monkeypatch.setitem(scoring.TOKENS, "cpu", 8 * (16 + QUESTION))
    monkeypatch.setattr(reading, "BLOCK", 64)
    return counts


def ask(ids: Tensor, file: Path | None, document: Any = None, settings: XL3M = SMALL, seed: int = 0) -> Any:
    model = tiny(max_position_embeddings=WINDOW, seed=seed)
    return model.generate(
        ids, custom_generate=settings, question=QUESTION, document=document, scores_file=file, return_segments=True,
        max_new_tokens=4, do_sample=False,
    )  # fmt: skip


def test_the_same_call_scores_nothing_again(scored: list[int], tmp_path: Path) -> None:
    ids = text(1, 400)
    alone, (wanted,) = ask(ids, None)
    segments = sum(scored)
    output, (first,) = ask(ids, tmp_path / "scores")
    assert sum(scored) == 2 * segments
    again, (second,) = ask(ids, tmp_path / "scores")
    assert sum(scored) == 2 * segments
    assert torch.equal(alone, output)
    assert torch.equal(alone, again)
    assert wanted.kept == first.kept == second.kept
    # the choice may differ, the scores are the same
    ask(ids, tmp_path / "scores", settings=XL3M(segment=16, overlap=4, key_context=40, score="entropy", keep=0.0))
    assert sum(scored) == 2 * segments


def test_an_interrupted_search_goes_on(scored: list[int], tmp_path: Path) -> None:
    body = text(1, 1000)[0]
    question = text(1, QUESTION, seed=9)

    def breaks() -> Any:
        yield body[:700]
        raise OSError("the disk is gone")

    _, (wanted,) = ask(question, None, document=body)
    segments = sum(scored)
    with pytest.raises(SourceError, match="With a file of scores"):
        ask(question, tmp_path / "scores", document=breaks())
    before = sum(scored) - segments
    assert 0 < before < segments
    _, (found,) = ask(question, tmp_path / "scores", document=iter(body.split(50)))
    assert sum(scored) == 2 * segments
    assert found.kept == wanted.kept


def test_only_what_changed_is_scored(scored: list[int], tmp_path: Path) -> None:
    ids = text(1, 400)
    ask(ids, tmp_path / "scores")
    before = len(scored)
    ids[0, 200] = 3 + (ids[0, 200] - 2) % 50
    _, (found,) = ask(ids, tmp_path / "scores")
    assert len(scored) - before <= 2
    _, (wanted,) = ask(ids, None)
    assert found.kept == wanted.kept


def test_scores_of_another_search_are_refused(scored: list[int], tmp_path: Path) -> None:
    ids = text(1, 400)
    ask(ids, tmp_path / "scores")
    with pytest.raises(ValueError, match="another run: model was"):
        ask(ids, tmp_path / "scores", seed=1)
    with pytest.raises(ValueError, match="another run: segment was 16 and is 20"):
        ask(ids, tmp_path / "scores", settings=XL3M(segment=20, overlap=4, key_context=40))
    (tmp_path / "other").write_text("not scores\n")
    with pytest.raises(ValueError, match=r"is not a store of finished cells\. Choose another file of scores"):
        ask(ids, tmp_path / "other")
    with pytest.raises(ValueError, match=r"is a folder, .* another file of scores"):
        ask(ids, tmp_path)


def test_each_row_of_a_batch_has_a_file(scored: list[int], tmp_path: Path) -> None:
    ids = torch.cat([text(1, 200, seed=1), text(1, 200, seed=2)])
    ask(ids, tmp_path / "scores")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.row-0", "scores.row-1"]
