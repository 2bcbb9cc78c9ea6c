"""`pipeline("text-generation")`: chats in padded batches, and from a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from tests.tiny import text, tiny, tokenizer
from tests.wrapping.cases import each_method

TEMPLATE = (
    "{% for message in messages %}{{ 'w' ~ (3 + loop.index) ~ ' ' ~ message['content'] ~ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}w40 {% endif %}"
)


def words(length: int) -> str:
    return " ".join(f"w{i}" for i in text(1, length, seed=length)[0].tolist())


CHATS = [
    [{"role": "user", "content": words(20)}],
    [{"role": "user", "content": words(3)}],  # inside every window
    [{"role": "user", "content": words(31)}, {"role": "assistant", "content": "w9"}, {"role": "user", "content": "w5"}],
]


@pytest.mark.parametrize("source", ["model", "folder"])
@each_method
def test_chats_in_a_padded_batch_equal_each_alone(method: Any, source: str, tmp_path: Path) -> None:
    model, words_ = tiny(), tokenizer()
    words_.chat_template = TEMPLATE
    method.apply(model)
    if source == "folder":
        model.save_pretrained(tmp_path)
        words_.save_pretrained(tmp_path)
        generate = pipeline("text-generation", model=str(tmp_path))
    else:
        generate = pipeline("text-generation", model=model, tokenizer=words_)
    settings = {"max_new_tokens": 6, "do_sample": False}
    together = [answer[0]["generated_text"][-1] for answer in generate(CHATS, batch_size=3, **settings)]
    alone = [generate(chat, **settings)[0]["generated_text"][-1] for chat in CHATS]
    assert together == alone
    for chat, answer in zip(CHATS, alone, strict=True):
        ids = words_.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        by_hand = model.generate(**ids, **settings)[0, ids["input_ids"].shape[1] :]
        assert answer == {"role": "assistant", "content": words_.decode(by_hand)}
