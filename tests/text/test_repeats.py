"""Repeated paragraphs and overlap with training text, against plain searches."""

from __future__ import annotations

import random

import pytest

from hf_longctx.text.corpora import load_text
from hf_longctx.text.held_back import overlap, refuse_shared
from hf_longctx.text.repeats import drop_repeated

LONG = "This paragraph has more than forty characters in it."
OTHER = "And this one is another, also of more than forty."


def test_paragraphs_that_come_again() -> None:
    again = LONG.upper().replace(" ", "  ")
    texts = [f"{LONG}\n\nHead\n\n{OTHER}\n\nHead\n\n{again}", f"{OTHER}\n \nNew text.\n\n{LONG}", "Nothing of that."]
    kept, dropped = drop_repeated(texts)
    assert kept == [f"{LONG}\n\nHead\n\n{OTHER}\n\nHead", "New text.", "Nothing of that."]
    assert [found.paragraphs for found in dropped] == [1, 2, 0]
    assert dropped[0].characters == len(again)
    assert dropped[1].share == pytest.approx((len(OTHER) + len(LONG)) / len(texts[1]))


def test_a_text_without_blank_lines_is_divided_by_lines() -> None:
    kept, dropped = drop_repeated([f"{LONG}\n{OTHER}\n{LONG}\nshort\nshort"])
    assert kept == [f"{LONG}\n{OTHER}\nshort\nshort"]
    assert dropped[0].paragraphs == 1


def test_texts_of_which_nothing_is_left() -> None:
    assert drop_repeated([LONG, LONG, ""])[0] == [LONG, "", ""]


def test_the_python_reference_repeats_itself() -> None:
    text = load_text("python-docs")
    (kept,), (dropped,) = drop_repeated([text])
    assert 0.1 < dropped.share < 0.4
    assert drop_repeated([kept])[1][0].paragraphs == 0
    assert len(kept) < len(text)


def by_search(held: list[int], training: list[list[int]], run: int) -> float:
    known = {tuple(ids[at : at + run]) for ids in training for at in range(len(ids) - run + 1)}
    covered = set()
    for at in range(len(held) - run + 1):
        if tuple(held[at : at + run]) in known:
            covered |= set(range(at, at + run))
    return len(covered) / len(held) if held else 0.0


@pytest.mark.parametrize("run", [1, 3, 13])
def test_overlap_is_that_of_a_search(run: int) -> None:
    rng = random.Random(run)
    training = [[rng.randrange(4) for _ in range(rng.randrange(60))] for _ in range(8)]
    held = [[rng.randrange(4) for _ in range(n)] for n in (0, 2, 13, 200)] + [training[0] + training[1]]
    held += [[7] * 20 + training[3][:40] + [7] * 20]
    assert overlap(held, training, run) == pytest.approx([by_search(ids, training, run) for ids in held])


def test_overlap_of_nothing() -> None:
    assert overlap([[1] * 20], []) == [0.0]
    with pytest.raises(ValueError, match="run=0"):
        overlap([], [], 0)


def test_a_document_both_held_back_and_trained_on_is_refused() -> None:
    refuse_shared({"a": LONG}, {"b": OTHER})
    with pytest.raises(ValueError, match=r"held back and trained on: a \(trained on as copy\), c\. Take them out"):
        refuse_shared({"a": LONG, "b": "x", "c": OTHER}, {"copy": f" {LONG.lower()}\n", "c": OTHER})
