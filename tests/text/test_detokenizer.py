"""What comes token by token is what the tokenizer decodes of all of them: every style of tokenizer, any ids."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_longctx.text.detokenizer import RUN, Detokenizer
from hf_longctx.text.pieces import written
from tests.text.test_pieces import HARD, byte_level
from tests.tiny import tokenizer as word_level

# characters of 1 to 4 bytes, joined ones, combining marks, a replacement character of the text's own, odd spaces
TEXTS = (
    "\U0001f642 ok", "ok \U0001f642", "न ok", "नमस्ते दुनिया", "e\u0301a\u0308 o", "👩‍👩‍👧 ok",
    "  two  spaces ", "日本語 テスト",
    "it 's n't so , is n ' t it ? ' yes ' !", " ' s .  .", "x \ufffd y\ufffd", "é\u2028ü\n\n ok\n", "ñ",
    "<b> ok </b>", "ok  ok",
)  # fmt: skip
SPECIAL = ["<s>", "</s>", "<unk>", "<|think|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TOLD = " ".join(TEXTS[:4]) + " ok it 's so , is it n't ? yes ! '"
ALPHABET = " ".join(map(chr, range(33, 127))) + "\n" + "".join(map(chr, range(33, 127))) + "¿é。"


def made(inner: Any, **settings: Any) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<|think|>"], **settings,
    )  # fmt: skip
    found.add_tokens([AddedToken("<tool>", special=False), AddedToken("<é>", special=False)])  # shown
    return found


def llama2(decoder: Any = None, scheme: str = "first") -> PreTrainedTokenizerFast:
    words = [
        *SPECIAL,
        *BYTES,
        "\u2581",
        "o",
        "k",
        "ok",
        "\u2581ok",
        "न",
        "\u2581\u2581",
        "\ufffd",
        "e",
        "'",
        "n",
        "t",
        "s",
        ".",
    ]
    merges = [("o", "k"), ("\u2581", "ok"), ("\u2581", "\u2581")]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts if decoder is None else decoder)
    return made(inner)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    space = decoders.Metaspace(prepend_scheme=scheme)
    return llama2([decoders.ByteFallback(), space, decoders.Fuse()], scheme)


def no_strip() -> PreTrainedTokenizerFast:  # as Gemma
    return llama2([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()], "never")


def unigram(**settings: Any) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.Unigram())
    lines = pre_tokenizers.Split("\n", "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), lines])
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        [TOLD, HARD, ALPHABET], trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return made(inner, **settings)


def word_piece(cleanup: bool, **settings: Any) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=cleanup)
    inner.train_from_iterator([TOLD, HARD, ALPHABET], trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    return made(inner, **settings)


def word_ends(**settings: Any) -> PreTrainedTokenizerFast:  # as CLIP and the first GPT
    inner = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    inner.train_from_iterator(
        [TOLD, HARD], trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    )
    return made(inner, **settings)


def bytes_of(split: Any = None, **settings: Any) -> PreTrainedTokenizerFast:
    inner = byte_level(split).backend_tokenizer
    inner.add_special_tokens(SPECIAL)
    return made(inner, **settings)


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
}  # fmt: skip


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
