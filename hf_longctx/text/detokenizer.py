"""Text from token ids as they come. Joined, the pieces are the tokenizer's text of all the ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RUN = 1024  # byte tokens in a row that are held back; a wrong one after them affects itself alone
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# the end of a text that `clean_up_tokenization` may still change: each of its patterns begins with a space
_OPEN = re.compile(r"(?: (?:n'?|'[vr]?)?)+$")
_CLEAN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class Detokenizer:
    """The text of `tokenizer.decode(ids, skip_special_tokens=True)`, as the ids come, from a few tokens of history.

    Text that a later token could change is held back: a part of a character until it is whole (or can no longer be),
    the spaces that the tokenizer cleans up, and a run of byte tokens (`<0xF0>`, of SentencePiece models) until it ends,
    since one wrong byte turns its whole run into replacement characters. Whole characters of a run of more than 1,024
    are returned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # ids on which the text of the next ones may depend
        self._shown = 0  # characters of their text that were returned
        self._run = 0  # byte tokens at their end
        self._kinds: dict[int, str] = {}
        self._clean = _cleans(tokenizer)
        self._raw = ""  # text that is not cleaned up yet

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        kind = self._kind(token)
        if kind == "none":  # the next one's text does not depend on it either
            return ""
        self._ids.append(token)
        self._run = self._run + 1 if kind == "byte" else 0
        # whole characters of a long run are returned, at a character's end: the longest has four bytes
        if self._run and (self._run < RUN or self._run % RUN > 3):
            return ""
        text = self._decode(self._ids)
        if self._run and text.endswith("\ufffd"):
            return ""
        # the last one may be a part of a character; those before it are invalid, and stay
        whole = text.removesuffix("\ufffd")
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        self._forget(len(text) - self._shown)
        return self._cleaned(new)

    def end(self) -> str:
        """The rest, if the last character never became whole."""
        new = self._decode(self._ids)[self._shown :]
        self._ids, self._shown, self._run = [], 0, 0
        return self._cleaned(new, last=True)

    def _forget(self, held: int) -> None:
        """Keep the shortest end of the ids that has a text of its own, which alone decides the spaces after it.

        If `held` characters of the text were not returned, the last of them consists of at most four tokens.
        """
        keep = 4 if held else 1
        while keep < len(self._ids):
            text = self._decode(self._ids[-keep:])
            if text and not (self._run and "\ufffd" in text):
                self._ids, self._shown, self._run = self._ids[-keep:], len(text) - held, min(self._run, keep)
                return
            keep += 1 if keep < 4 else keep

    def _cleaned(self, new: str, last: bool = False) -> str:
        if not self._clean:
            return new
        self._raw += new
        found = None if last else _OPEN.search(self._raw)
        at = found.start() if found else len(self._raw)
        done, self._raw = self._raw[:at], self._raw[at:]
        return str(self._tokenizer.clean_up_tokenization(done))

    def _kind(self, token: int) -> str:
        """Either "none" (special tokens and those that the tokenizer does not know), "byte" or "text"."""
        if token not in self._kinds:
            name = self._tokenizer.convert_ids_to_tokens(token)
            special = not self._decode([token]) and bool(self._decode([token], skip=False))
            byte = name is not None and _BYTE.fullmatch(name)
            self._kinds[token] = "none" if name is None or special else "byte" if byte else "text"
        return self._kinds[token]

    def _decode(self, ids: list[int], skip: bool = True) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


def written(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens`, piece by piece as they come."""
    detokenizer = Detokenizer(tokenizer)
    for token in tokens:
        if text := detokenizer.add(token):
            yield text
    if rest := detokenizer.end():
        yield rest


def _cleans(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `decode` cleans up spaces by itself: transformers does not for BPE, whatever the tokenizer's setting."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    inner = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(inner, "model", None)).__name__ != "BPE" or bool(getattr(tokenizer, _CLEAN_BPE, True))
