"""A conversation on a reader is the template's own rendering of it, read once."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite, stream
from hf_longctx.streaming.chat import Chat
from hf_longctx.streaming.terminal import interruptible
from tests.contract.registry import close
from tests.evaluation.conftest import byte_tokenizer
from tests.tiny import logits_of, tiny

TEMPLATE = (
    "{% if messages[0].role != 'system' %}<bos>system: be kind<eos>\n{% endif %}"
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)
METHOD = LMInfinite(n_global=2, n_local=64)


@pytest.fixture
def tokenizer() -> Any:
    made = byte_tokenizer(bos=False)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


class Recorder:
    """The ids that a reader was given, in order, with those it wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chat: Chat) -> None:
        self.ids: list[int] = []
        forward = chat.reader._forward

        def record(ids_1L: Tensor, how: Any) -> None:
            self.ids += ids_1L[0].tolist()
            forward(ids_1L, how)

        monkeypatch.setattr(chat.reader, "_forward", record)


@pytest.mark.parametrize("system", [None, "be brief"])
@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_conversation_is_read_once_as_the_template_renders_it(
    system: str | None, ends_by_itself: bool, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with METHOD.on(model):
        chat = Chat(stream(model), tokenizer, system)
        seen = Recorder(monkeypatch, chat)
        told = [] if system is None else [{"role": "system", "content": system}]
        for turn in ("hello", "what is your name? ", "and mine?"):
            scripted = iter(tokenizer("ok")["input_ids"] + [tokenizer.eos_token_id] * ends_by_itself)
            with monkeypatch.context() as patch:
                patch.setattr(chat.reader, "_choose", lambda *_, script=scripted: next(script))
                answer = "".join(chat.answer(turn, max_new_tokens=2 + ends_by_itself, do_sample=False))
            assert answer == "ok"
            told += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(told, tokenize=False)
        expected = tokenizer(whole.removesuffix("\n" if ends_by_itself else "<eos>\n"))["input_ids"]
        logits = chat.reader.logits
        assert tokenizer.decode(seen.ids) == tokenizer.decode(expected)
        assert seen.ids == expected
        close(logits, logits_of(model, torch.tensor([expected]))[0, -1])
        assert chat.reader.position == len(expected)


def test_answer_that_is_stopped_is_part_of_the_conversation(model: Any, tokenizer: Any) -> None:
    with METHOD.on(model):
        chat = Chat(stream(model), tokenizer)
        for turn in ("hello", "again"):
            for number, _ in enumerate(chat.answer(turn, do_sample=False, eos_token_id=None)):
                if number == 3:
                    break
        assert 0 < chat.tokens < 40
        assert f"position {chat.reader.position:,}; {chat.seconds / chat.tokens:.3f} s per token" in chat.stats()


def test_turn_costs_the_same_after_many(model: Any, tokenizer: Any) -> None:
    with METHOD.on(model):
        chat, lengths, sizes = Chat(stream(model), tokenizer), [], []
        for _ in range(12):
            before = chat.reader.position
            list(chat.answer("tell me more", max_new_tokens=5, do_sample=False, eos_token_id=[]))
            lengths.append(chat.reader.position - before)
            sizes.append(chat.reader.nbytes)
        assert set(lengths[1:]) == {lengths[1]}
        assert set(sizes[3:]) == {sizes[3]}


def test_tokenizer_that_cannot_chat_is_refused(model: Any, tokenizer: Any) -> None:
    with METHOD.on(model):
        tokenizer.chat_template = "{{ messages[-1].content }}"
        chat = Chat(stream(model), tokenizer)
        list(chat.answer("a", max_new_tokens=1, do_sample=False))
        with pytest.raises(ValueError, match="leaves earlier answers out"):
            list(chat.answer("b"))
        tokenizer.chat_template = None
        with pytest.raises(ValueError, match="no chat template"):
            Chat(stream(model), tokenizer)


def test_ctrl_c_sets_a_flag_and_a_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
