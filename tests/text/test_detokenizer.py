"""Text that comes token by token is the tokenizer's text of all of them: every kind of tokenizer, any ids."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hf_longctx.text import written
from hf_longctx.text.detokenizer import RUN, Detokenizer
from tests.tiny import tokenizer as word_level
from tests.tokenizer_kinds import TEXTS, bytes_of, llama2, metaspace, no_strip, unigram, word_ends, word_piece

CLEAN: dict[str, Any] = {"clean_up_tokenization_spaces": True}
CORRUPT = {**CLEAN, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
STYLES: dict[str, Any] = {
    "byte-level": bytes_of,
    "byte-level, as Llama 3": lambda: bytes_of("llama3"),
    "byte-level, cleaned up": lambda: bytes_of(**CORRUPT),
    "byte-level, cleaned up if it were no BPE": lambda: bytes_of(**CLEAN),
    "byte fallback": llama2,
    "byte fallback, not stripped": no_strip,
    "byte fallback, metaspace first": lambda: metaspace("first"),
    "byte fallback, metaspace always": lambda: metaspace("always"),
    "byte fallback, metaspace never": lambda: metaspace("never"),
    "unigram": unigram,
    "unigram, cleaned up": lambda: unigram(**CLEAN),
    "word pieces": lambda: word_piece(False),
    "word pieces, cleaned up": lambda: word_piece(False, **CLEAN),
    "word pieces, cleaned up twice": lambda: word_piece(True, **CLEAN),
    "word ends": word_ends,
    "words": word_level,
}


@pytest.mark.parametrize("style", STYLES)
def test_pieces_joined_are_what_is_decoded(style: str) -> None:
    tokenizer, rng = STYLES[style](), random.Random(0)
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    several = 0
    for case in range(300):
        ids: list[int] = []
        for text in rng.choices(TEXTS, k=rng.randint(1, 3)):
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if case % 3 == 1:
            ids += rng.choices(range(len(tokenizer)), k=rng.randint(1, 12))  # what no text is made of
        if case % 4 == 2:
            for _ in range(rng.randint(1, 3)):  # also inside of a character, and many of them
                at = rng.randint(0, len(ids))
                ids[at:at] = rng.choices(special, k=rng.choice((1, 5, 40)))
        ids = ids[rng.choice((0, 0, 1)) : rng.randint(1, len(ids))]  # an early end, perhaps inside of a character
        pieces = list(written(tokenizer, iter(ids)))
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True), tokenizer.convert_ids_to_tokens(ids)
        several += len(pieces) > 1
    assert several > 40  # it does not wait for the end


@pytest.mark.parametrize("style", ["byte-level", "byte fallback"])
def test_character_comes_as_soon_as_it_is_certain(style: str) -> None:
    tokenizer = STYLES[style]()
    ids = tokenizer("ok \U0001f642 ok", add_special_tokens=False)["input_ids"]
    pieces = list(written(tokenizer, ids))
    assert pieces[0] == "ok"
    assert len(pieces) >= 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_run_of_bytes_is_not_waited_for_for_ever() -> None:
    tokenizer = llama2()
    for text in ("\U0001f642" * 1500, "中" * 1500, "aé" * 900):
        ids = tokenizer(f"ok {text} ok", add_special_tokens=False)["input_ids"]
        pieces = list(written(tokenizer, ids))
        assert "".join(pieces) == f"ok {text} ok"
        assert max(map(len, pieces)) <= RUN


def test_little_is_looked_back_at() -> None:
    for style in ("byte-level", "word pieces, cleaned up", "byte fallback"):
        tokenizer = STYLES[style]()
        ids = tokenizer(" ".join(TEXTS) * 20, add_special_tokens=False)["input_ids"]
        detokenizer, most = Detokenizer(tokenizer), 0
        for token in [*ids, *[tokenizer.eos_token_id] * 100]:
            detokenizer.add(token)
            most = max(most, len(detokenizer._ids))
        assert most < 60
