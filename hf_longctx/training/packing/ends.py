"""Where answers end: through the special token that ends each, which a model must learn in order to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All special tokens, also those that have no name, such as Llama 3's <|start_header_id|>."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def through_ends(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    answers: Sequence[bool],
    special: frozenset[int],
    where: str,
) -> list[bool]:
    """Each answer through its end token: longer where the template's mark ends before it, shorter where behind it.

    Raises:
        ValueError: An answer is not followed by a special token. `where` names the chat.
    """
    targets = list(answers)
    for start, stop in _runs(answers):
        # behind the end token there is white space at most
        last = next((at for at in range(stop - 1, start - 1, -1) if not _blank(tokenizer, ids[at], special)), start)
        if ids[last] not in special:
            last = next((at for at in range(last + 1, len(ids)) if not _blank(tokenizer, ids[at], special)), len(ids))
            if last == len(ids) or ids[last] not in special:
                raise ValueError(
                    f"{where}: the chat template ends an answer with no special token, so that a model would never "
                    f"learn to stop. Put the end token (such as eos_token) behind answers in the template."
                )
        targets[start:stop] = [False] * (stop - start)
        targets[start : last + 1] = [True] * (last + 1 - start)
    return targets


def _blank(tokenizer: PreTrainedTokenizerBase, token: int, special: frozenset[int]) -> bool:
    return token not in special and not str(tokenizer.decode([token])).strip()


def _runs(answers: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where the stretches of True begin and end."""
    at = 0
    for target, some in groupby(answers):
        start, at = at, at + sum(1 for _ in some)
        if target:
            yield start, at
