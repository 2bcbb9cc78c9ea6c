"""A conversation of any length: each turn reads only the new text, so turns cost the same however many there were."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..cache.copies import deep_copy
from ..text.detokenizer import written
from ..text.joins import common, ids_after
from ..text.pieces import MARK
from ..text.tokens import encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .reader import Reader


class Chat:
    """Turns of a conversation on a `Reader`.

    The model reads what the template renders for the whole conversation. It is never rendered whole, and not kept: one
    exchange with stand-ins for its words takes the place of the earlier turns, since the text that a template writes
    between an answer and the next one does not depend on them. The model's own end of an answer (an end token, line
    ends) is not read twice, and the template's is read instead. Templates that rewrite earlier turns (dropping the
    thoughts of a reasoning model) have no effect on what the model has read already.

    Args:
        reader: Where the conversation is read and written.
        tokenizer: The model's, with a chat template.
        system: What the conversation begins with, for templates that take it.
    """

    def __init__(self, reader: Reader, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "this model's tokenizer has no chat template, so hf_longctx cannot tell where a turn ends. Use a "
                "model that was tuned for conversations, or `hf-longctx generate`."
            )
        self.reader, self.tokenizer = reader, tokenizer
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._begun = False
        self._last: deque[int] = deque(maxlen=16)  # tokens written last
        self._end: set[int] = set()  # tokens that end an answer
        self.tokens, self.seconds = 0, 0.0  # of the last answer

    def __deepcopy__(self, memo: Any) -> Chat:
        """The conversation so far, which continues by itself from here, with the same model."""
        return deep_copy(self, memo, self.tokenizer)

    def answer(self, text: str, **settings: Any) -> Iterator[str]:
        """Read a turn of the user and write the answer, as text that comes piece by piece. Settings: `Reader.generate`.

        Breaking out of the loop stops the answer; the conversation continues from the text written so far.
        """
        self.reader.read(self._next(text) if self._begun else self._first(text))
        self._begun, self.tokens, self.seconds = True, 0, 0.0
        self._last.clear()
        self._end = self._ends(settings)
        yield from written(self.tokenizer, self._tokens(settings))

    def _first(self, text: str) -> list[int]:
        return encode(self.tokenizer, render(self.tokenizer, [*self._system, {"role": "user", "content": text}]))

    def _next(self, text: str) -> list[int]:
        """What the template writes from the end of the last answer to the beginning of the next, as ids."""
        last = list(self._last)
        ended = last.pop() if last and last[-1] in self._end else None
        answer = self.tokenizer.decode(last, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        blank = answer[len(answer.rstrip()) :]  # which a template may strip
        past = [{"role": "user", "content": "..."}, {"role": "assistant", "content": f"{MARK}{blank}"}]

        def after(words: str) -> str:
            chat = [*self._system, *past, {"role": "user", "content": words}]
            _, found, new = render(self.tokenizer, chat).partition(MARK)
            if not found:
                raise ValueError(
                    "the chat template leaves earlier answers out, so a conversation cannot continue with it."
                )
            return new[common(new, blank) :]

        new = after(text)
        # the template's own end of an answer takes the place of the model's, which the model has not read yet
        if ended is not None and self.reader.take_back() is not None:
            self._last.pop()
        elif ended is not None:
            mark = str(self.tokenizer.decode([ended], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            at = after(MARK).partition(MARK)[0].find(mark)
            if at >= 0:
                return ids_after(self.tokenizer, mark, new[at + len(mark) :])
        return ids_after(self.tokenizer, f"a{blank}", new)

    def _ends(self, settings: dict[str, Any]) -> set[int]:
        config = settings.get("generation_config") or self.reader.model.generation_config
        end = settings.get("eos_token_id", getattr(config, "eos_token_id", None))
        end = self.reader.model.generation_config.eos_token_id if end is None else end
        return set(end) if isinstance(end, list | tuple) else {end}

    def _tokens(self, settings: dict[str, Any]) -> Iterator[int]:
        began = time.perf_counter()
        for token in self.reader.generate(**settings):
            self._last.append(token)
            self.tokens += 1
            self.seconds = time.perf_counter() - began
            yield token

    def stats(self) -> str:
        """How far the conversation is and how fast the last answer came, in one line."""
        pace = f"{self.seconds / self.tokens:.3f} s per token" if self.tokens else "no answer yet"
        return f"position {self.reader.position:,}; {pace}; {self.reader.nbytes / 2**20:,.1f} MiB of cache"
