"""Texts that are tokenised apart have the ids of the whole: no space, no first token and no merge comes or goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import processors

import hf_longctx.text.pieces as text_stream
from hf_longctx.evaluation.passkey import passkey_prompts
from hf_longctx.evaluation.sample import Sample, encode, encode_parts
from hf_longctx.generation.xl3m.arguments import opened
from hf_longctx.generation.xl3m.prompt import around_text, split, text_before
from hf_longctx.sharing.questions import Prompt
from hf_longctx.text import encode as encode_text
from hf_longctx.text import encode_pieces, ids_after, ids_before, ids_of_parts
from tests.tokenizer_kinds import HARD, KINDS, sentence_piece, unigram, word_piece

STYLES: dict[str, Any] = {
    **KINDS,
    "no pre-tokeniser": sentence_piece,
    "unigram": unigram,
    "word pieces": lambda: word_piece(False),
}
LLAMA2 = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PLAIN = "{{ messages[0].content }}"  # no first token, and nothing around the text
TEMPLATES = {"no template": None, "as Llama 2": LLAMA2, "ChatML": CHATML, "nothing around": PLAIN}
DOCUMENTS = (
    "ok.",
    "It is so, ok ok!\n\nAnd the last line ends here.",
    "日本語\nテスト。",
    "one (two)",
    HARD.strip(),
    "f(x):\n  1234",
)
QUESTIONS = ("Who is it?", "ok", "1 + 1?", "¿Quién?", "\nindented?", "न?")


def ready(style: str, template: str) -> Any:
    tokenizer = STYLES[style]()
    tokenizer.chat_template = TEMPLATES[template]
    inner, first = tokenizer.backend_tokenizer, tokenizer.bos_token
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, inner.token_to_id(first))]
    )
    return tokenizer


def whole(tokenizer: Any, user: str) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(user)["input_ids"])
    chat = [{"role": "user", "content": user}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_document_and_questions_about_it(style: str, template: str) -> None:
    tokenizer = ready(style, template)
    for document in DOCUMENTS:
        prompt = Prompt(tokenizer, [document])
        assert len(prompt.document_ids)
        for question in QUESTIONS:
            ids = prompt.document_ids.tolist() + prompt.question(question)
            if len(prompt.document_ids) > 1:
                assert ids == whole(tokenizer, f"{document}\n\n{question}"), (document, question)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_head_text_and_question_of_segments(style: str, template: str, tmp_path: Any) -> None:
    tokenizer = ready(style, template)
    for number, document in enumerate(DOCUMENTS):
        if style.endswith("Llama 3") and document.endswith(("!", ".", ")", "。")):
            continue  # a token of the text's last sign and the line end after it
        (tmp_path / str(number)).write_text(document, encoding="utf-8")
        for question in QUESTIONS[:4]:
            head, tail = around_text(tokenizer, question)
            expected = whole(tokenizer, f"{document}\n\n{question}")
            streamed = encode_pieces(tokenizer, [document], bos=False, after=text_before(tokenizer, head))
            assert head + [i for ids in streamed for i in ids] + tail == expected, (document, question)
            streamed = opened(tmp_path / str(number), tokenizer, head)
            assert head + [i for ids in streamed for i in ids] + tail == expected, (document, question)


@pytest.mark.parametrize("style", STYLES)
def test_chats_head_and_last_turn_are_found(style: str) -> None:
    tokenizer = ready(style, "as Llama 2")
    chat = [
        {"role": role, "content": text} for role, text in (("user", "ok so"), ("assistant", "yes"), ("user", "why"))
    ]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    parts = split(
        torch.tensor(ids), question=None, head=None, tokenizer=tokenizer, bos=tokenizer.bos_token_id, window=256, tail=5
    )
    assert [*parts.head, *parts.text.tolist(), *parts.question] == ids
    assert "why" in tokenizer.decode(parts.question)
    assert "yes" not in tokenizer.decode(parts.question)
    assert "[INST]" in tokenizer.decode(parts.head).replace(" ", "")


@pytest.mark.parametrize("style", STYLES)
def test_parts_of_a_sample(style: str) -> None:
    for template in TEMPLATES:
        tokenizer = ready(style, template)
        for document in DOCUMENTS:
            sample = Sample(
                id="0",
                task="t",
                instruction="Read this.\n",
                context=document,
                question="\n\nWhy?",
                answers=("x",),
                max_new_tokens=4,
                metric="presence",
            )
            head, text, tail = encode_parts(tokenizer, sample)
            assert head + text + tail == encode(tokenizer, sample)
            assert encode(tokenizer, sample) == whole(tokenizer, sample.user)


@pytest.mark.parametrize("style", [style for style in STYLES if "word" not in style])
def test_passkey_has_no_spaces_that_are_in_no_text(style: str) -> None:
    tokenizer = ready(style, "no template")
    ids, keys = passkey_prompts(tokenizer, 1200, 0.5, trials=2, haystack="One line.\nAnother line of it.")
    for row, key in zip(ids, keys, strict=True):
        text = tokenizer.decode(row)
        assert not any(
            f"\n {part}" in text for part in ("The pass key", "What is the pass key", "One line", "There is")
        )
        assert f"The pass key is {key}." in text


@pytest.mark.parametrize("style", STYLES)
def test_long_line_has_no_spaces_that_are_in_no_text(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = STYLES[style]()
    monkeypatch.setattr(text_stream, "PIECE", 50)
    if style != "word pieces":
        text = "日本語テスト" * 200
        ids = [i for some in encode_pieces(tokenizer, [text], bos=False) for i in some]
        assert tokenizer.decode(ids).strip() == tokenizer.decode(encode_text(tokenizer, text)).strip()


@pytest.mark.parametrize("style", STYLES)
def test_ids_of_a_text_that_goes_on(style: str) -> None:
    tokenizer = STYLES[style]()
    for first, then in (
        ("ok", " so"),
        ("ok.", " ok"),
        ("ok\n\n", "ok"),
        ("ok\n", "ok"),
        ("ok", "ok"),
        ("<s>ok ", "ok"),
        ("x ", " y"),
    ):
        known = ids_before(tokenizer, first)
        assert known + ids_after(tokenizer, first, then, known) == encode_text(tokenizer, first + then)
        one, two, three = ids_of_parts(tokenizer, first, then, "?")
        assert one + two + three == encode_text(tokenizer, f"{first}{then}?")
