"""Whose a card is: written here and not edited since, or somebody's own words, which stay."""

from __future__ import annotations

import hashlib
import re

# ends every card that was written here, and tells one that was edited afterwards
_MARK = "<!-- card of hf_longctx, sha256 {} -->\n"
_FROM_PEFT = r"### Framework versions|- PEFT [\w.+]+|"  # what PEFT adds to the blank card of huggingface_hub


def marked(text: str) -> str:
    """The text of a card with the mark by which `is_unedited` knows it."""
    return text + _mark(text)


def is_unedited(text: str) -> bool:
    """Whether this is a card as `write_card` wrote it, which may be written again."""
    body, mark, digest = text.rpartition(_MARK.partition(" sha256")[0])
    return bool(mark) and mark + digest == _mark(body)


def was_ours(text: str) -> bool:
    """Whether `write_card` wrote this card, edited since or not."""
    return _MARK.partition(" sha256")[0] in text


def is_ours_or_blank(text: str) -> bool:
    """Whether nobody has written this card: it is `write_card`'s, or PEFT's with none of its fields filled in."""
    if is_unedited(text):
        return True
    from huggingface_hub import ModelCard, ModelCardData

    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    blank = {line.strip() for line in ModelCard.from_template(ModelCardData()).text.splitlines()}
    left = {line.strip() for line in body.splitlines()} - blank
    return "[More Information Needed]" in body and all(re.fullmatch(_FROM_PEFT, line) for line in left)


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])
