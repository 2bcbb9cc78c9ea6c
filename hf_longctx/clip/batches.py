"""Batches of images with their two captions, for one process or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from .embed import encode_captions, pixels_of, read_image
from .pairs import Pair
from .settings import FineTuning

_AT_ONCE = 10_000


def check_captions(pairs: Sequence[Pair], tokenizer: Any, limit: int) -> None:
    """ValueError if a caption has more than `limit` tokens: at the start, not in the third hour of a training."""
    for at in range(0, len(pairs), _AT_ONCE):
        part = pairs[at : at + _AT_ONCE]
        for captions in ([pair.long for pair in part], [pair.short for pair in part]):
            lengths = [len(row) for row in tokenizer(captions, verbose=False).input_ids]
            longest = max(range(len(part)), key=lengths.__getitem__)
            if lengths[longest] > limit:
                raise ValueError(
                    f"the caption of {str(part[longest].image)!r} has {lengths[longest]} tokens, the model reads "
                    f"{limit}. Shorten it, stretch the model further, or ask for truncation (truncate: true)."
                )


class Epochs(Sampler[int]):
    """All rows in an order that follows from seed and epoch, so that a resumed run continues with the same batches."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        yield from torch.randperm(self._count, generator=generator).tolist()


class _Prepare:
    """Pairs to tensors, in the loader's workers."""

    def __init__(self, tokenizer: Any, processor: Any, limit: int, truncate: bool) -> None:
        self._tokenizer, self._processor = tokenizer, processor
        self._limit, self._truncate = limit, truncate

    def __call__(self, pairs: list[Pair]) -> dict[str, Tensor]:
        ids = {
            name: encode_captions(self._tokenizer, captions, self._limit, truncate=self._truncate)
            for name, captions in (("long", [one.long for one in pairs]), ("short", [one.short for one in pairs]))
        }
        return {"pixels": pixels_of(self._processor, [read_image(one.image) for one in pairs]), **ids}


def loader(
    pairs: Sequence[Pair], tokenizer: Any, processor: Any, settings: FineTuning, limit: int
) -> tuple[DataLoader[Any], Epochs]:
    """Batches {"pixels": [B, 3, H, W], "long": [B, T], "short": [B, T]}, and the sampler, whose `epoch` is to be set.

    Captions have at most `limit` tokens. The last, short batch of an epoch is dropped: the loss needs the same number
    of pairs everywhere.
    """
    sampler = Epochs(len(pairs), settings.seed)
    rows: Any = pairs  # a sequence is a data set
    prepare = _Prepare(tokenizer, processor, limit, settings.truncate)
    how: dict[str, Any] = {"drop_last": True, "num_workers": settings.workers, "collate_fn": prepare}
    return DataLoader(rows, settings.batch, sampler=sampler, **how), sampler
