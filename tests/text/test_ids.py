"""Token ids from any source, in pieces: the same ids whatever they come in, and the same words for what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hf_longctx.text.ids import SourceError, blocks, pieces

IDS = [(7 * i) % 50 for i in range(23)]


def failed(error: Exception, taken: int, dropped: int) -> SourceError:
    return SourceError(f"{error} after {taken}, {dropped}")


def one_by_one(ids: list[int]) -> Iterator[int]:
    yield from ids


SOURCES: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": one_by_one,
    "lists": lambda ids: [ids[:3], [], ids[3:11], ids[11:]],
    "lists and ints": lambda ids: [ids[:3], *ids[3:5], ids[5:]],
    "numpy's integers": lambda ids: [np.int32(i) for i in ids],
    "lists of numpy's integers": lambda ids: [[np.int64(i) for i in ids]],
    "tensors": lambda ids: iter([torch.tensor(ids[:9]), torch.tensor(ids[9:])]),
    "tensor": torch.tensor,
    "short tensor": lambda ids: torch.tensor(ids, dtype=torch.uint8),
    "every second one": lambda ids: torch.tensor([i for one in ids for i in (one, 0)])[::2],
    "array": np.array,
    "array backwards": lambda ids: np.array(ids[::-1])[::-1],
    "unsigned array": lambda ids: np.array(ids, dtype=np.uint64),
}


@pytest.mark.parametrize("size", [1, 5, 23, 100])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_all_sources_give_the_same_ids(source: Callable[[list[int]], Any], size: int) -> None:
    cut = [IDS[start : start + size] for start in range(0, len(IDS), size)]
    found = list(pieces(source(IDS), size, 50, failed))
    assert found == cut
    assert all(type(one) is int for piece in found for one in piece)
    tensors = list(blocks(source(IDS), size, 50, failed))
    assert [block.tolist() for block in tensors] == cut
    assert all(block.dtype == torch.long and block.ndim == 1 for block in tensors)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("cut", [pieces, blocks])
def test_an_id_outside_of_the_vocabulary_is_named(source: Callable[[list[int]], Any], cut: Any) -> None:
    found: list[Any] = []
    with pytest.raises(ValueError, match=r"token 17 is 200, outside .* \(0 to 49\).*15 of these ids have been read"):
        found.extend(map(list, cut(source([*IDS[:17], 200, *IDS[18:]]), 5, 50, failed)))
    assert [one for piece in found for one in piece] == IDS[:15]


@pytest.mark.parametrize("wrong", [True, 1.0, "7", None, np.float32(3)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cut", [pieces, blocks])
def test_what_is_no_id_is_named(wrong: Any, nested: bool, cut: Any) -> None:
    source = [*IDS[:6], wrong, *IDS[6:]]
    at = 0 if nested else 6
    with pytest.raises(ValueError, match=rf"at token {at}.* there is .*expected an iterable of token ids"):
        list(cut([source] if nested else source, 5, 50, failed))


def test_a_source_that_raises_says_how_far_it_came() -> None:
    def broken() -> Iterator[int]:
        yield from IDS[:12]
        raise OSError("gone")

    for cut in (pieces, blocks):
        with pytest.raises(SourceError, match="gone after 12, 2"):
            list(cut(broken(), 5, 50, failed))


def test_no_ids() -> None:
    for source in ([], (), iter([]), torch.tensor([], dtype=torch.long), [[], []]):
        assert list(blocks(source, 5, 50, failed)) == list(pieces(source, 5, 50, failed)) == []
