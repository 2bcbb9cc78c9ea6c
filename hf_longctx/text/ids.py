"""Token ids from any source, in pieces of one size: never more of them in memory than one piece."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

EXPECTED = "expected an iterable of token ids (whole numbers), or of lists or 1-D tensors of them: one text, no batch"


class SourceError(RuntimeError):
    """The iterator of token ids raised; its own exception is the cause.

    Attributes:
        reader: The reader of the ids, which holds every whole chunk before that and can be used; None without one.
    """

    def __init__(self, message: str, reader: Any = None) -> None:
        super().__init__(message)
        self.reader = reader


def pieces(
    source: Iterable[Any], size: int, vocabulary: int, failed: Callable[[Exception, int, int], Exception]
) -> Iterator[list[int]]:
    """The ids of `source` in lists of `size`, the last one shorter.

    Args:
        source: As the argument `ids` of `hf_longctx.stream`.
        size: Ids of a piece.
        vocabulary: Ids are below this number.
        failed: Makes the exception to raise when `source` itself raises, from that exception, the number of ids taken
            and the number of those that were not yielded.
    """
    piece: list[int] = []
    taken = 0  # yielded in whole pieces
    items = _items(source)
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:
            raise failed(error, taken + len(piece), len(piece)) from error
        if type(item) is int:  # the common case, once per token
            piece.append(item)
        else:
            row = _row(item, taken + len(piece))
            start = 0
            while len(piece) + len(row) - start >= size:
                stop = start + size - len(piece)
                piece += _ints(row[start:stop])
                yield _checked(piece, vocabulary, taken)
                taken, start, piece = taken + size, stop, []
            piece += _ints(row[start:])
        if len(piece) == size:
            yield _checked(piece, vocabulary, taken)
            taken, piece = taken + size, []
    if piece:
        yield _checked(piece, vocabulary, taken)


def blocks(
    source: Iterable[Any], size: int, vocabulary: int, failed: Callable[[Exception, int, int], Exception]
) -> Iterator[Tensor]:
    """`pieces` as 1-D int64 tensors. One tensor or array is cut in place, without a list of its ids."""
    if not hasattr(source, "ndim"):
        for piece in pieces(source, size, vocabulary, failed):
            yield _tensor(piece)
        return
    row = _row(source, 0)
    for start in range(0, len(row), size):
        part = row[start : start + size]
        if not isinstance(part, Tensor):
            yield _tensor(_checked(_ints(part), vocabulary, start))
            continue
        block = part.long()
        low, high = torch.aminmax(block)
        if low < 0 or high >= vocabulary:
            _checked(block.tolist(), vocabulary, start)  # names the wrong one
        yield block


def _items(source: Any) -> Iterator[Any]:
    if isinstance(source, str | bytes | Mapping):
        hint = 'pass its ["input_ids"]' if isinstance(source, Mapping) else "tokenise the text first"
        raise ValueError(f"ids is of type {type(source).__name__}: {EXPECTED}. Here: {hint}.")
    if hasattr(source, "ndim") or _are_ints(source):  # one tensor, array or list: cut, not iterated
        return iter([source])
    try:
        return iter(source)
    except TypeError:
        raise ValueError(f"ids is of type {type(source).__name__}: {EXPECTED}.") from None


def _row(item: Any, at: int) -> Any:
    """`item` as something of one dimension that can be cut."""
    shape = tuple(getattr(item, "shape", ()))
    if hasattr(item, "ndim") and hasattr(item, "dtype"):
        kind = str(item.dtype).removeprefix("torch.")
        if item.ndim <= 1 and kind.startswith(("int", "uint")):
            return item.reshape(-1)
        hint = " Of a batch of one pass ids[0]." if item.ndim == 2 and shape[0] == 1 else ""
        raise ValueError(f"ids: at token {at:,} there is a tensor of shape {shape} and dtype {kind}; {EXPECTED}.{hint}")
    if _are_ints(item):
        return item
    if isinstance(item, list | tuple | range):
        wrong = [x for x in item if isinstance(x, bool) or not hasattr(x, "__index__")]
        if not wrong:
            return item
        item = wrong[0]
    raise ValueError(f"ids: at token {at:,} there is {item!r:.60}, of type {type(item).__name__}; {EXPECTED}.")


def _are_ints(row: Any) -> bool:
    """Is it a list of Python's own integers? To ask all for their types takes a tenth of a look at each of them."""
    return isinstance(row, list | tuple | range) and {int}.issuperset(map(type, row))


def _ints(row: Any) -> list[int]:
    if hasattr(row, "tolist"):
        found: list[int] = row.tolist()
        return found
    return list(row) if _are_ints(row) else [operator.index(x) for x in row]


def _tensor(piece: list[int]) -> Tensor:
    """In a tenth of the time of `torch.tensor`."""
    return torch.frombuffer(array("q", piece), dtype=torch.long)


def _checked(piece: list[int], vocabulary: int, before: int) -> list[int]:
    if min(piece) < 0 or max(piece) >= vocabulary:
        at = next(i for i, x in enumerate(piece) if not 0 <= x < vocabulary)
        raise ValueError(
            f"ids: token {before + at:,} is {piece[at]}, outside the model's vocabulary (0 to {vocabulary - 1}). Use "
            f"the model's own tokenizer. {before:,} of these ids have been read; this chunk has not."
        )
    return piece
