"""A shared prefix whose text is edited, against one that was read anew."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_longctx import load_prefix, shared_prefix
from hf_longctx.sharing.layers import Level
from tests.sharing.prefixes import DOCUMENT, GREEDY, QUESTIONS, agree
from tests.tiny import text, tiny

FAMILIES = ("llama", "qwen3", "mistral", "smollm3", "gpt_neox")
NEW = torch.cat([DOCUMENT[:7], torch.tensor([5, 6, 7]), DOCUMENT[9:-1]])
EVERYTHING = 1_000


def snapshot(levels: tuple[Level, ...]) -> list[Tensor]:
    return [t.clone() for level in levels for t in (level.ids_N, *level.keys, *level.values)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_prefix_answers_like_one_read_anew(family: str) -> None:
    model = tiny(family)
    with shared_prefix(model, DOCUMENT) as prefix:
        before = snapshot(prefix.levels)
        edited, report = prefix.edit(NEW, repair=EVERYTHING)
        assert torch.equal(edited.ids, NEW)
        assert (report.edits, report.kept, report.forwarded) == (2, 7, 3)
        agree(edited, model, NEW, QUESTIONS)
        agree(prefix, model, DOCUMENT, QUESTIONS)
        assert all(torch.equal(a, b) for a, b in zip(before, snapshot(prefix.levels), strict=True))


def test_the_last_of_several_levels_is_edited(tmp_path: Path) -> None:
    model, chapter = tiny("llama"), text(1, 15, 8)[0]
    new = torch.cat([chapter[2:6], torch.tensor([9, 9]), chapter[6:]])
    with shared_prefix(model, DOCUMENT) as prefix:
        edited, _ = prefix.extend(chapter).edit(new, repair=EVERYTHING)
        assert edited.levels[0] is prefix.levels[0]
        agree(edited, model, torch.cat([DOCUMENT, new]), QUESTIONS)
        agree(edited.extend(chapter), model, torch.cat([DOCUMENT, new, chapter]), QUESTIONS)
        edited.save(tmp_path / "edited")
        tokens = edited.generate(max_new_tokens=5, do_sample=False)
    with load_prefix(model, tmp_path / "edited", torch.cat([DOCUMENT, new])) as loaded:
        assert torch.equal(loaded.generate(max_new_tokens=5, do_sample=False), tokens)


def test_prefixes_that_cannot_be_edited() -> None:
    model = tiny("gemma3")  # a window of 8
    with shared_prefix(model, DOCUMENT) as prefix, pytest.raises(ValueError, match="keeps a window of its tokens"):
        prefix.edit(NEW)
    model = tiny("llama")
    with shared_prefix(model, DOCUMENT) as prefix:
        with pytest.raises(ValueError, match="empty"):
            prefix.edit(NEW[:0])
        with pytest.raises(ValueError, match="repair="):
            prefix.edit(NEW, repair=-1)
        kept = copy.copy(prefix)
    with pytest.raises(RuntimeError, match="has ended"):
        kept.edit(NEW)
    with shared_prefix(model, DOCUMENT) as prefix:
        edited, report = prefix.edit(DOCUMENT)
        assert (report.edits, report.kept) == (0, len(DOCUMENT))
        assert torch.equal(edited.generate(**GREEDY), prefix.generate(**GREEDY))
