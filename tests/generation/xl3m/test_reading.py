"""A text in overlapping segments, whatever pieces it comes in."""

from __future__ import annotations

import random

import pytest
import torch

from hf_longctx.generation.xl3m.reading import SourceError, batches, read
from tests.reference.xl3m import segments


@pytest.mark.parametrize(("segment", "overlap"), [(8, 1), (8, 0), (8, 7), (1, 0), (5, 2)])
def test_segments_are_those_of_the_reference_in_batches_of_any_size(segment: int, overlap: int) -> None:
    for total in [*range(1, 40), 203]:
        ids = torch.arange(total)
        pieces = iter(ids.split(random.randint(1, 12)))
        for rows, source in ((1, ids), (3, ids.tolist()), (7, pieces)):
            found, expected = [], 0
            for batch in batches(read(source, 1000), segment, overlap, rows):
                assert batch.first == expected
                assert len(batch.starts) <= rows
                expected += len(batch.starts)
                for start, row in zip(batch.starts, batch.ids_NS.tolist(), strict=True):
                    assert row == list(range(start, start + len(row)))
                    found.append((start, start + len(row)))
            assert found == segments(ids.tolist(), segment, overlap)


def test_an_empty_text_has_no_segment() -> None:
    assert not list(batches(read([], 10), 8, 1, 4))


def test_only_a_few_batches_are_taken_ahead() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield [taken % 10] * 1000

    next(batches(read(endless(), 10), 256, 32, 8))
    assert taken * 1000 <= 2**16 + 1000


def test_what_is_wrong_with_ids_is_said() -> None:
    with pytest.raises(ValueError, match=r"token 70,000 is 11, outside the model's vocabulary \(0 to 9\)"):
        list(read(torch.cat([torch.zeros(70_000, dtype=torch.long), torch.tensor([11])]), 10))
    with pytest.raises(ValueError, match="tokenise the text first"):
        list(read("words", 10))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        list(read(torch.zeros(2, 3, dtype=torch.long), 10))

    def broken() -> object:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(SourceError, match=r"OSError after 1 ids: the disk is gone"):
        list(read(broken(), 10))
