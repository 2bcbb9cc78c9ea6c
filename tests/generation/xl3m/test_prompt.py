"""Where a prompt's head, text and question are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.generation.xl3m.prompt import Parts, around_text, split
from tests.tiny import BOS, text, tokenizer

TEMPLATE = (
    "{% set roles = {'user': 'w4', 'assistant': 'w5', 'system': 'w6'} %}"
    "{% for m in messages %}{{ 'w3 ' + roles[m['role']] + ' ' + m['content'] + ' w7 ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w3 w5 ' }}{% endif %}"
)


def chatting() -> Any:
    """A turn is `w3 ROLE words w7`; roles are w4 (user), w5 (assistant) and w6 (system)."""
    made = tokenizer()
    made.chat_template = TEMPLATE
    return made


def cut(ids: Tensor, **given: Any) -> Parts:
    usual = {"question": None, "head": None, "tokenizer": None, "bos": BOS, "window": 64, "tail": 10}
    return split(ids, **{**usual, **given})


def ids_of(made: Any, words: str) -> Tensor:
    return torch.tensor(made(words, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("question", [7, "as ids", "as a tensor"])
def test_a_question_by_number_and_by_ids(question: Any) -> None:
    ids = text(1, 100)[0]
    wanted = ids[-7:].tolist()
    given = {"as ids": wanted[:5], "as a tensor": ids[-7:-3]}.get(question, question)
    parts = cut(ids, question=given)
    assert parts.question == wanted
    assert torch.equal(parts.text, ids[:-7])


def test_without_a_word_the_question_is_the_tail() -> None:
    assert len(cut(text(1, 100)[0]).question) == 10
    short = cut(text(1, 6)[0])
    assert (len(short.text), short.question) == (0, text(1, 6)[0].tolist())


@pytest.mark.parametrize("spaces", [0, 1, 2])
def test_the_empty_line_before_words_is_the_questions(spaces: int) -> None:
    """Else it goes with the text's last segment, and the question follows another one's last word at once."""

    class Tokens:
        chat_template = None

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join("\n" if i == 3 else f" w{i}" for i in ids)

    ids = torch.tensor([*range(20, 40), *[3] * spaces, 8, 9, 10])
    parts = cut(ids, question="w8 w9", tokenizer=Tokens())
    assert parts.question == [*[3] * spaces, 8, 9, 10]
    assert parts.text.tolist() == [*range(20, 40)]


def test_words_are_found_from_the_end() -> None:
    made = tokenizer()
    body = "w8 w9 w10 w11 w12 " * 8
    ids = ids_of(made, f"{body}w20 w21 w22 w7 w3")
    assert made.decode(cut(ids, question="w20 w21 w22", tokenizer=made).question).split() == [
        "w20",
        "w21",
        "w22",
        "w7",
        "w3",
    ]
    assert len(cut(ids, question="w9 w10", tokenizer=made).question) == 9  # the last of eight
    with pytest.raises(ValueError, match=r"'w30 w31' is not in the last 45 tokens"):
        cut(ids, question="w30 w31", tokenizer=made)
    with pytest.raises(ValueError, match="needs the tokenizer"):
        cut(ids, question="w20")
    with pytest.raises(ValueError, match="question is empty"):
        cut(ids, question="  ", tokenizer=made)


def test_beginning_of_text_is_the_head() -> None:
    ids = torch.cat([torch.tensor([BOS]), text(1, 40)[0]])
    assert cut(ids).head == [BOS]
    assert cut(ids, bos=None).head == []
    assert cut(ids, head=3).head == ids[:3].tolist()


def test_a_chats_last_turn_is_the_question_and_its_system_prompt_the_head() -> None:
    made = chatting()
    body = " ".join(f"w{8 + i % 40}" for i in range(100))
    chat = [{"role": "system", "content": "w50 w51"}, {"role": "user", "content": body},
            {"role": "assistant", "content": "w52"}, {"role": "user", "content": "w53 w54"}]  # fmt: skip
    ids = ids_of(made, made.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    parts = cut(ids, tokenizer=made)
    assert made.decode(parts.head).split() == ["w3", "w6", "w50", "w51", "w7", "w3", "w4"]
    assert made.decode(parts.question).split() == ["w7", "w3", "w4", "w53", "w54", "w7", "w3", "w5"]
    assert made.decode(parts.text.tolist()).split() == [*body.split(), "w7", "w3", "w5", "w52"]


def test_one_turn_with_text_and_question_has_its_tail_for_a_question() -> None:
    made = chatting()
    words = " ".join(f"w{8 + i % 40}" for i in range(100))
    ids = ids_of(made, made.apply_chat_template([{"role": "user", "content": words}], tokenize=False,
                                                add_generation_prompt=True))  # fmt: skip
    parts = cut(ids, tokenizer=made)
    assert made.decode(parts.head).split() == ["w3", "w4"]
    assert len(parts.question) == 10


def test_a_tokenizer_without_a_template_is_no_matter() -> None:
    made = tokenizer()
    assert len(cut(text(1, 30)[0], tokenizer=made).question) == 10
    assert made.decode(around_text(made, "w20 w21")[1]).split() == ["w20", "w21"]
    head, question = around_text(chatting(), "w20 w21")
    assert made.decode(head).split() == ["w3", "w4"]
    assert made.decode(question).split() == ["w20", "w21", "w7", "w3", "w5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": 0}, "question=0: expected at least 1 token"),
        ({"question": 101}, r"question=101: expected a number of tokens, 0 to the prompt's 100"),
        ({"question": True}, "question=True"),
        ({"question": [3, 999]}, r"these 2 ids are not in the prompt"),
        ({"question": []}, r"these 0 ids are not in the prompt"),
        ({"head": -1}, "head=-1: expected a number of tokens"),
        ({"head": 95}, "head=95: the question begins at token 90 of 100, so head and question overlap"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(text(1, 100)[0], **given)
