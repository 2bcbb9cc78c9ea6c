"""A text of any length as overlapping segments, a batch of them at a time."""

# N segments, S tokens of a segment
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...text.ids import SourceError, blocks

BLOCK = 2**16  # ids that are taken from a source at once


@dataclass(frozen=True)
class Batch:
    """Segments of one length, in the order of the text."""

    first: int  # number of the first segment, counted from the start of the text
    starts: list[int]  # where each begins, in tokens of the text
    ids_NS: Tensor  # on the device of the source; rows share memory, as they overlap


def read(source: Iterable[Any], vocabulary: int) -> Iterator[Tensor]:
    """The ids of `source`, which is as the argument `ids` of `hf_longctx.stream`, as 1-D tensors.

    Raises:
        ValueError: `source` is none of token ids, or holds one that is not in 0 to `vocabulary`, exclusive.
        SourceError: `source` itself raised.
    """
    return blocks(source, BLOCK, vocabulary, _failed)


def batches(text: Iterable[Tensor], segment: int, overlap: int, rows: int) -> Iterator[Batch]:
    """Every token of a text is in a segment; no more than a few batches are in memory.

    Segments of `segment` tokens share `overlap` with the next one. The last is as long as the others, and overlaps the
    one before by more. A text shorter than a segment is one segment of its own length; of an empty text there is none.
    Batches have `rows` segments; the last ones may be smaller.
    """
    stride = segment - overlap
    held = torch.empty(0, dtype=torch.long)  # not handed out yet, or overlapping what comes
    before = held  # the last tokens before `held`
    offset = first = 0  # of `held`, in tokens and in segments
    for block in text:
        held = torch.cat([held.to(block.device), block])
        while len(held) >= (rows - 1) * stride + segment:
            yield _batch(held[: (rows - 1) * stride + segment], segment, stride, first, offset)
            cut = rows * stride
            before = torch.cat([before.to(held.device), held[:cut]])[-segment:]
            held, offset, first = held[cut:], offset + cut, first + rows
    whole = max(0, (len(held) - segment) // stride + 1)
    if whole:
        yield _batch(held[: (whole - 1) * stride + segment], segment, stride, first, offset)
    # a batch before reached `overlap` tokens into `held`
    reached = (whole - 1) * stride + segment if whole else overlap if first else 0
    if len(held) > reached:
        last = torch.cat([before.to(held.device), held])[-segment:]
        yield Batch(first + whole, [offset + len(held) - len(last)], last[None])


def _batch(ids: Tensor, segment: int, stride: int, first: int, offset: int) -> Batch:
    ids_NS = ids.unfold(0, segment, stride)
    return Batch(first, [offset + i * stride for i in range(len(ids_NS))], ids_NS)


def _failed(error: Exception, taken: int, dropped: int) -> SourceError:
    said = str(error).removesuffix(".")
    return SourceError(
        f"the source of token ids raised {type(error).__name__} after {taken:,} ids: {said}. With a file of scores, "
        f"the same call continues after the segments that were scored."
    )
