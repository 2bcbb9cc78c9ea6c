"""A conversation is what its template renders, whatever stands around an answer, and whoever wrote its end."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from hf_longctx import LMInfinite, stream
from hf_longctx.streaming.chat import Chat
from hf_longctx.text.joins import common, ids_after
from hf_longctx.text.tokens import encode
from tests.streaming.test_chat import Recorder
from tests.tiny import tiny
from tests.tokenizer_kinds import KINDS


def template(before: str, after: str, content: str = "m.content") -> str:
    """User turns as in Llama 2, and answers between `before` and `after`."""
    return (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        f"{{% else %}}{before}{{{{ {content} }}}}{after}{{% endif %}}{{% endfor %}}"
    )


# what stands before the answer's first word, the template, and white space that it strips
TEMPLATES: dict[str, tuple[str, str]] = {
    "end token": ("", template("", "</s>")),
    "space before the end token": ("", template("", " </s>")),
    "spaces around both": (" ", template(" ", " </s> ")),
    "line end before the end token": ("", template("", "\n</s>\n")),
    "line end after the end token": ("", template("", "</s>\n")),
    "line end and no token": ("", template("", "\n")),
    "nothing": ("", template("", "")),
    "another token": ("", template("", "<|think|>\n")),
    "another token and the end token": ("", template("", " <|think|></s>")),
    "the end token twice": ("", template("", "</s></s>")),
    "trimmed, with a space": ("", template("", " </s>", "m.content | trim")),
    "trimmed, with a line end": ("", template("", "\n</s>", "m.content | trim")),
    "trimmed, and no token": ("", template("", "\n", "m.content | trim")),
}


def render(tokenizer: Any, *turns: str) -> str:
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=len(turns) % 2 == 1))


class Scripted:
    """A chat in which every answer is given."""

    def __init__(self, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer, self.patch = tokenizer, monkeypatch
        self.chat = Chat(stream(model), tokenizer)
        self.seen = Recorder(monkeypatch, self.chat)

    def say(self, turn: str, answer: list[int], by_itself: bool) -> None:
        script = iter([*answer, self.tokenizer.eos_token_id])
        self.patch.setattr(self.chat.reader, "_choose", lambda *_: next(script))
        list(self.chat.answer(turn, max_new_tokens=len(answer) + by_itself))


@pytest.mark.parametrize("blank", ["", " ", "\n", "\n\n"])
@pytest.mark.parametrize("style", KINDS)
def test_what_is_read_is_what_the_template_renders(style: str, blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS[style]()
    model = tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, num_hidden_layers=1)
    with LMInfinite(n_global=2, n_local=64).on(model):
        for (name, (lead, tokenizer.chat_template)), by_itself in product(TEMPLATES.items(), (True, False)):
            scripted, told = Scripted(model, tokenizer, monkeypatch), []
            for turn in ("so?", "why is it so?"):
                answer = ids_after(tokenizer, render(tokenizer, *told, turn), f"{lead}ok{blank}")
                scripted.say(turn, answer, by_itself)
                told += [turn, f"ok{blank}"]
            scripted.say("last", answer, False)
            seen = scripted.seen.ids[: len(scripted.seen.ids) - len(answer) + 1]
            text = render(tokenizer, *told, "last")
            if "trim" in name:  # what is stripped has been read, and is not read twice
                own = re.search(r"ok(\s*)", text)[1]  # type: ignore[index]
                text = text.replace(f"ok{own}", f"ok{blank}{own[common(own, blank) :]}")
            whole = encode(tokenizer, text)
            assert tokenizer.decode(seen) == tokenizer.decode(whole), name
            assert blank or seen == whole, name


@pytest.mark.parametrize("style", KINDS)
def test_end_token_that_was_read_already_is_not_read_again(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS[style]()
    model = tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, num_hidden_layers=1)
    with LMInfinite(n_global=2, n_local=64).on(model):
        for name, (_, tokenizer.chat_template) in TEMPLATES.items():
            scripted = Scripted(model, tokenizer, monkeypatch)
            for turn in ("so?", "why is it so?"):
                scripted.say(turn, ids_after(tokenizer, "a", "ok"), True)
                _ = scripted.chat.reader.logits
            scripted.say("last", [4], False)
            seen = tokenizer.decode(scripted.seen.ids)
            assert seen.count("</s>") == 2 * max(1, tokenizer.chat_template.count("</s>")), name
