"""Chats that a model writes itself, from nothing but its chat template, as in Magpie (Xu et al. 2024).

A chat model that is given what its template puts before a user's text goes on with a user's text
(https://arxiv.org/abs/2406.08464, section 2.1); asked that, it writes the answer. So what is rehearsed are chats of the
kinds that the model knows, and no prompt comes from anywhere else.
"""

# B chats of a batch
from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from hf_longctx.evaluation.answer import greedy
from hf_longctx.text.joins import ids_after

from .facts import Row
from .measure import chat_ids, questions
from .sampling import FREE, seeded

BATCH = 1024  # chats that are written at once
BARREN = 4  # batches without a new chat, after which no more are waited for
SHARED = 5  # words in a row that a chat may not have in common with a question of the evaluation
SENTINEL = "d41d8cd98f00b204"  # what a template shows as it is, wherever it puts a user's text


@dataclass(frozen=True)
class Turn:
    """What a chat template puts around the first text of a user.

    Args:
        before: The text before it: what a model is given that is to write it.
        end: The token that ends it; None: `mark` does.
        mark: The text that ends it.
    """

    before: str
    end: int | None
    mark: str


def turn_of(tokenizer: Any) -> Turn:
    """A user's turn in the tokenizer's chat template, found by what the template makes of a text.

    Raises:
        ValueError: There is no template, or it does not show the text of a user once, with something behind it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "rehearsal: of: chats: the tokenizer has no chat template, so that its model writes no chats. "
            "Rehearse what it writes after its documents (of: documents), or give a model that chats."
        )
    told = [{"role": "user", "content": SENTINEL}]
    before, *rest = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False).split(SENTINEL)
    if len(rest) != 1 or not rest[0].strip():
        raise ValueError(
            f"rehearsal: of: chats: the chat template shows a user's text {len(rest)} times, or nothing behind it: "
            f"expected once, and the end of the turn. Rehearse what the model writes after documents (of: documents)."
        )
    added = tokenizer.added_tokens_decoder
    behind = ids_after(tokenizer, "a", rest[0])
    at = next((n for n, one in enumerate(behind) if tokenizer.decode([one]).strip()), 0)
    end = behind[at] if behind[at] in added else None
    return Turn(before, end, rest[0].strip().splitlines()[0])


@dataclass(frozen=True)
class Chat:
    """Ids of a prompt as its template renders it, and of the answer."""

    prompt: list[int]
    answer: list[int]


def rows_of(chats: Iterable[Chat], length: int, weight: float, pad: int) -> list[Row]:
    """A row for each chat, padded on the right, where nothing that counts sees it. Answers alone are targets."""
    rows = []
    for chat in chats:
        ids = (chat.prompt + chat.answer)[: length + 1]
        weights = [0.0] * len(chat.prompt) + [float(weight)] * (len(ids) - len(chat.prompt))
        missing = length + 1 - len(ids)
        rows.append(Row(ids + [pad] * missing, weights + [0.0] * missing))
    return rows


class Writer:
    """A model that writes both sides of chats.

    Args:
        model: In eval mode.
        tokenizer: With a chat template.
        settings: `rehearsal` of the config: `length`, the tokens of a chat at most; `asked`, those of a user's turn;
            `greedy`, whether answers are the likeliest tokens or sampled. Users' turns are sampled.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.settings, self.turn = model, tokenizer, settings, turn_of(tokenizer)
        ends = model.generation_config.eos_token_id
        self.ends: set[int] = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
        added = tokenizer.added_tokens_decoder.items()
        self.special = {one for one, token in added if token.special} | self.ends | {self.turn.end}
        self.pad: int = greedy(model, tokenizer, 1).pad_token_id or 0
        self.refused = {phrase for asked in questions() for phrase in phrases(asked)}
        self.dropped = {"not ended": 0, "empty": 0, "told before": 0, "as in the evaluation": 0, "too long": 0}
        self.seen: set[str] = set()

    def chats(self, count: int) -> list[Chat]:
        """So many, each another.

        Raises:
            ValueError: The model does not write so many.
        """
        prompts: list[list[int]] = []
        barren = 0
        while len(prompts) < count:
            found = list(self._prompts(min(BATCH, max(2 * (count - len(prompts)), 8))))
            barren = 0 if found else barren + 1
            if barren == BARREN:
                raise ValueError(
                    f"rehearsal: of: chats: of {count} users' turns the model has written {len(prompts)}, and none in "
                    f"the last {BARREN} batches; left out: {self.dropped}. Give longer turns (asked), longer chats "
                    f"(length) or fewer tokens, or rehearse what it writes after documents (of: documents)."
                )
            prompts += found
        # of like lengths together: a batch goes on until its shortest prompt has a whole answer
        prompts = sorted(prompts[:count], key=len)
        return [chat for at in range(0, count, BATCH) for chat in self._answered(prompts[at : at + BATCH])]

    def _prompts(self, count: int) -> Iterator[list[int]]:
        head = self.tokenizer(self.turn.before, add_special_tokens=False)["input_ids"]
        if len(head) + self.settings["asked"] >= self.settings["length"]:
            raise ValueError(
                f"rehearsal: length: {self.settings['length']}, asked: {self.settings['asked']}: the chat template "
                f"begins with {len(head)} tokens, and no answer has room. Give longer chats or a shorter turn."
            )
        for ids in self._written([head] * count, self.settings["asked"], sampled=True, asked=True):
            text = self._text(ids)
            if text is not None and self._new(text):
                (prompt,) = chat_ids(self.tokenizer, [text])
                if len(prompt) < self.settings["length"]:
                    yield prompt
                else:
                    self.dropped["too long"] += 1

    def _text(self, ids: list[int]) -> str | None:
        """What a user says in a turn, if it is one: ended as the template ends it, and no part of another turn."""
        text, ended = self._cut(ids)
        if not ended:
            self.dropped["not ended"] += 1
            return None
        if not text.strip():
            self.dropped["empty"] += 1
            return None
        return text.strip()

    def _cut(self, ids: list[int]) -> tuple[str, bool]:
        """The text before the end of the turn; and whether it has one, before any other special token."""
        end = next((at for at, one in enumerate(ids) if one in self.special), len(ids))
        if self.turn.end is not None:
            return self.tokenizer.decode(ids[:end]), end < len(ids) and ids[end] == self.turn.end
        text, mark, _ = self.tokenizer.decode(ids[:end]).partition(self.turn.mark)
        return text, bool(mark)

    def _new(self, text: str) -> bool:
        if " ".join(words(text)) in self.seen:
            self.dropped["told before"] += 1
            return False
        self.seen.add(" ".join(words(text)))
        if self.refused & set(phrases(text)):
            self.dropped["as in the evaluation"] += 1
            return False
        return True

    def _answered(self, prompts: list[list[int]]) -> Iterator[Chat]:
        room = self.settings["length"] + 1 - len(prompts[0])
        answers = self._written(prompts, room, sampled=not self.settings["greedy"], asked=False)
        for prompt, ids in zip(prompts, answers, strict=True):
            end = next((at + 1 for at, one in enumerate(ids) if one in self.ends), len(ids))
            yield Chat(prompt, ids[:end])

    def _written(self, prompts: list[list[int]], most: int, *, sampled: bool, asked: bool) -> list[list[int]]:
        """Ids that follow prompts, with what comes after an end."""
        width = max(map(len, prompts))
        ids_BL = torch.tensor([[self.pad] * (width - len(ids)) + ids for ids in prompts])
        mask_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        how, stop = greedy(self.model, self.tokenizer, most), dict[str, Any]()
        if sampled:
            how = GenerationConfig(**how.to_dict() | FREE)
        if asked and self.turn.end is None:
            stop = {"stop_strings": [self.turn.mark], "tokenizer": self.tokenizer}
        elif asked:
            how.eos_token_id = sorted(self.ends | {self.turn.end})
        given = {"attention_mask": mask_BL.to(self.model.device), "generation_config": how, **stop}
        found = self.model.generate(ids_BL.to(self.model.device), **given)
        own: list[list[int]] = found[:, width:].tolist()
        return own


def words(text: str) -> list[str]:
    """Of a text, small, without signs."""
    return re.findall(r"\w+", text.casefold())


def phrases(text: str) -> Iterator[str]:
    """Every run of `SHARED` words."""
    every = words(text)
    return (" ".join(every[at : at + SHARED]) for at in range(len(every) - SHARED + 1))


def written_chats(model: Any, tokenizer: Any, settings: dict[str, Any], seed: int) -> tuple[list[Row], dict[str, int]]:
    """Rows of whole chats, `tokens` of them with their padding; and how many were left out for what.

    Args:
        model: The stock model, in eval mode.
        tokenizer: With its chat template.
        settings: `rehearsal` of the config.
        seed: Of the samples.
    """
    writer = Writer(model, tokenizer, settings)
    with seeded(model, seed):
        chats = writer.chats(settings["tokens"] // settings["length"])
    random.Random(seed).shuffle(chats)
    return rows_of(chats, settings["length"], settings["weight"], writer.pad), writer.dropped
