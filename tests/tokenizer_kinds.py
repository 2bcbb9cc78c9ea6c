"""Small trained tokenizers of every kind, and texts that are hard for them."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from hf_longctx.text.corpora import load_text

# characters of 1 to 4 bytes, joined ones, combining marks, a replacement character of the text's own, odd spaces
TEXTS = (
    "\U0001f642 ok", "ok \U0001f642", "न ok", "नमस्ते दुनिया", "e\u0301a\u0308 o", "👩‍👩‍👧 ok",
    "  two  spaces ", "日本語 テスト",
    "it 's n't so , is n ' t it ? ' yes ' !", " ' s .  .", "x \ufffd y\ufffd", "é\u2028ü\n\n ok\n", "ñ",
    "<b> ok </b>", "ok  ok",
)  # fmt: skip
# blank lines, indents, white space at ends of lines, digits, several bytes a character: what may go wrong at a cut
HARD = (
    "\n\n\n  x \n\n \t y\n".join(
        ["a.\nb", "日本語\nテスト", "1234\n5678", "f(x)\n  g(y)\n", "naïve — né\nça", "8\n9\n"]
    )
    * 20
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def documents() -> str:
    return load_text("python-docs")[:40_000] + HARD


def byte_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


def byte_level(split: Any = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE: with GPT-2's own pattern, or after another split."""
    inner = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None or split == "digits")
    digits = pre_tokenizers.Digits(individual_digits=True)
    before = {None: [], "digits": [digits], "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")]}[split]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*before, plain])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([documents()], trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's: no pre-tokeniser, a space before the text, bytes for what is in no token; and a first token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split("\n", "isolated")])
    inner.train_from_iterator([documents()], trainers.BpeTrainer(vocab_size=1500))
    inner.pre_tokenizer = None
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens(["<s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


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


# the kinds in which a text's parts may be tokenised otherwise than the text
KINDS: dict[str, Any] = {
    "byte-level": bytes_of,
    "byte-level, as Llama 3": lambda: bytes_of("llama3"),
    "byte fallback": llama2,
    "byte fallback, metaspace always": lambda: metaspace("always"),
    "byte fallback, no space before": no_strip,
}
