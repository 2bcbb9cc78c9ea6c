"""An editor's session: text in, text out, and a cache that follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerFast

from hf_longctx import LMInfinite, PositionFree
from hf_longctx.editing import EditSession
from tests.tiny import BOS, EOS, PAD, VOCAB, logits_of, text, tiny, tokenizer

TEXT = " ".join(f"w{i}" for i in text(1, 40)[0].tolist())
EVERYTHING = 10_000


def merging() -> PreTrainedTokenizerFast:
    """Letters, one token each, but for "bc" and "ab", the first of which wins."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .:\n"
    words = ["<pad>", "<bos>", "<eos>", *letters, "bc", "ab"][:VOCAB]
    inner = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [("b", "c"), ("a", "b")]))
    inner.decoder = decoders.Fuse()
    assert (words[PAD], words[BOS], words[EOS]) == ("<pad>", "<bos>", "<eos>")
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)


def check(session: EditSession) -> None:
    """The cache is that of the text; `repair` must have been everything."""
    ids = session.tokenizer(session.text)["input_ids"]
    assert session.ids == ids
    held = session.cache
    assert held.get_seq_length() == len(ids) - 1
    cache: Any = type(held)(config=session.model.config)
    logits_of(session.model, torch.tensor([ids]), past_key_values=cache, use_cache=True)
    for layer, full in zip(held.layers, cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, full.keys[:, :, :-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.values, full.values[:, :, :-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [None, PositionFree(), LMInfinite(n_local=200)], ids=lambda m: m and m.name)
def test_the_cache_follows_the_text(method: Any) -> None:
    model = tiny("llama")
    if method:
        method.apply(model)
    session = EditSession(model, tokenizer(), TEXT, repair=EVERYTHING)
    check(session)
    at = TEXT.index(" w", 30)
    report = session.replace(at, at, " w9 w8")
    assert session.text == TEXT[:at] + " w9 w8" + TEXT[at:]
    assert (report.forwarded, report.edits) == (2, 1)
    assert session.report is report
    check(session)
    session.replace(0, 3, "w5 w6 w7")
    check(session)
    session.undo()
    session.undo()
    assert session.text == TEXT
    check(session)
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_an_edit_that_changes_its_neighbours_tokens() -> None:
    model, tok = tiny("llama"), merging()
    source = "hello abd and more of it. " * 3
    session = EditSession(model, tok, source, repair=EVERYTHING)
    at = source.index("abd") + 2
    before = tok(source)["input_ids"]
    report = session.replace(at, at + 1, "c")
    after = tok(session.text)["input_ids"]
    # "ab" "d" became "a" "bc": one letter was changed, and the token before it is another one
    place = tok(source[: source.index("abd")])["input_ids"]
    assert tok.convert_ids_to_tokens(before[len(place) : len(place) + 2]) == ["ab", "d"]
    assert tok.convert_ids_to_tokens(after[len(place) : len(place) + 2]) == ["a", "bc"]
    assert report.kept == len(place)
    assert (report.forwarded, report.deleted) == (2, 2)
    check(session)


def test_complete_writes_on_and_is_undone() -> None:
    model, tok = tiny("llama"), merging()
    session = EditSession(model, tok, "some text, to begin with. abd".replace(",", ""), repair=EVERYTHING)
    start = session.text
    session.replace(0, 4, "Some more")
    ids = torch.tensor([tok(session.text)["input_ids"]])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    before = session.text
    written = session.complete(max_new_tokens=8, do_sample=False)
    assert written == tok.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert session.text == before + written
    session.complete(max_new_tokens=3, do_sample=False)
    session.replace(len(session.text), len(session.text), "bc")
    check(session)
    for _ in range(4):
        session.undo()
    assert session.text == start
    check(session)


def test_refresh_reads_all_anew() -> None:
    model = tiny("qwen3")
    session = EditSession(model, tokenizer(), TEXT, repair=0)
    session.replace(0, 0, "w3 w4 ")
    with pytest.raises(AssertionError):
        check(session)  # the paper's method is approximate
    session.refresh()
    check(session)


def test_a_text_of_one_token() -> None:
    for method in (None, PositionFree()):
        model = tiny("llama")
        if method:
            method.apply(model)
        session = EditSession(model, tokenizer(), "w9", repair=EVERYTHING)
        session.replace(2, 2, " w8 w7 w6")
        check(session)
        session.replace(2, len(session.text), "")
        assert session.text == "w9"
        assert len(session.complete(max_new_tokens=2).split()) <= 2


def test_wrong_use_leaves_the_session_as_it_was() -> None:
    session = EditSession(tiny("llama"), tokenizer(), TEXT, repair=EVERYTHING)
    for start, end in ((-1, 2), (3, 2), (0, len(TEXT) + 1)):
        with pytest.raises(ValueError, match="length of the text"):
            session.replace(start, end, "")
    wrong: Any = 1.0
    with pytest.raises(ValueError, match="expected whole numbers"):
        session.replace(wrong, 3, "")
    with pytest.raises(ValueError, match="text=float: expected a string"):
        session.replace(1, 3, wrong)
    with pytest.raises(ValueError, match="has no tokens"):
        session.replace(0, len(TEXT), "")
    for settings in ({"num_beams": 2}, {"num_return_sequences": 3}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="one text and one cache"):
            session.complete(**settings)
    for other in (GenerationConfig(prompt_lookup_num_tokens=2), GenerationConfig(use_cache=False)):
        with pytest.raises(ValueError, match="one text and one cache"):
            session.complete(generation_config=other)
    with pytest.raises(ValueError, match="use_cache=False: a session has one text and one cache"):
        session.complete(use_cache=False)
    for given in ({"past_key_values": None}, {"input_ids": None}, {"attention_mask": None}):
        with pytest.raises(ValueError, match="a session keeps its own cache"):
            session.complete(**given)
    with pytest.raises(ValueError, match=r"half of a character \(a lone surrogate\)"):
        session.replace(0, 0, "w5 \ud83d")
    with pytest.raises(ValueError, match="no_such_setting"):
        session.complete(no_such_setting=1)
    assert session.text == TEXT
    check(session)
    with pytest.raises(ValueError, match="has no tokens"):
        EditSession(tiny("llama"), tokenizer(), "")
    with pytest.raises(ValueError, match="text=float: expected a string"):
        EditSession(tiny("llama"), tokenizer(), wrong)
    swapped: Any = tiny("llama")
    with pytest.raises(ValueError, match="expected the tokenizer of the model"):
        EditSession(swapped, swapped, TEXT)
    with pytest.raises(ValueError, match="LlamaModel: cannot generate"):
        EditSession(swapped.model, tokenizer(), TEXT)
    with pytest.raises(ValueError, match="repair=-1"):
        EditSession(swapped, tokenizer(), "w9", repair=-1)


def test_what_the_models_own_settings_would_do_to_the_cache() -> None:
    model = tiny("llama")
    written = EditSession(model, tokenizer(), TEXT).complete(max_new_tokens=8, do_sample=False)
    settings = model.generation_config
    settings.prompt_lookup_num_tokens, settings.use_cache, settings.num_beams = 2, False, 3
    session = EditSession(model, tokenizer(), TEXT, repair=EVERYTHING)
    assert session.complete(max_new_tokens=8, do_sample=False) == written
    session.replace(0, 2, "w7")
    check(session)


def test_a_completion_of_nothing_is_no_change_to_undo() -> None:
    session = EditSession(tiny("llama"), tokenizer(), TEXT, repair=EVERYTHING)
    session.replace(0, 2, "w7")

    def end(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([EOS]), 0.0)

    assert session.complete(max_new_tokens=4, do_sample=False, logits_processor=LogitsProcessorList([end])) == ""
    session.undo()
    assert session.text == TEXT
    check(session)


def test_half_a_character_is_not_written() -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    letters = pre_tokenizers.ByteLevel.alphabet()
    inner = Tokenizer(BPE({letter: i for i, letter in enumerate(sorted(letters))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=inner)
    session = EditSession(tiny("llama", vocab_size=256), tok, "cafe", repair=EVERYTHING)
    wanted = [tok.convert_tokens_to_ids(letter) for letter in "sÃ"]  # "s" and the first of two bytes

    def write(ids: Tensor, scores: Tensor) -> Tensor:
        token = torch.tensor([wanted[ids.shape[1] - 4]])
        return torch.full_like(scores, -torch.inf).index_fill(1, token, 0.0)

    assert session.complete(max_new_tokens=2, do_sample=False, logits_processor=LogitsProcessorList([write])) == "s"
    assert session.text == "cafes"
    session.replace(5, 5, "é")
    check(session)


def test_character_that_is_cut_takes_no_other_with_it() -> None:
    from tests.tokenizer_kinds import bytes_of, llama2

    for made in (llama2(), bytes_of()):
        session = EditSession(tiny(vocab_size=len(made)), made, "ok \U0001f642")
        new = made("\U0001f642", add_special_tokens=False)["input_ids"]
        new = [i for i in new if made.convert_ids_to_tokens(i) != "\u2581"]
        for n in range(min(len(new), 4)):
            assert session._text_of(torch.tensor(new + new[:n])) == "\U0001f642"
