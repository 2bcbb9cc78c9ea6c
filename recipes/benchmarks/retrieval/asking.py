"""Documents full of facts, read once by a model, and what it answers to the questions about them."""

# Q questions, L tokens of a text, N tokens that are scored, V vocabulary
from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_longctx import stream
from hf_longctx.ops.kernels.lookup import FEW
from hf_longctx.upstream.caches import given_cache

from ..haystacks import PIECE, Haystacks
from .facts import Encode, Question, hide, questions

SINGLE = ("number", "pass key")


@dataclass(frozen=True)
class Document:
    """A text, the questions about it, and how it continues; token ids on the CPU."""

    ids_L: Tensor
    questions: list[Question]
    next_N: Tensor


@dataclass
class Answers:
    """The share of right parts and the nats per token of each answer, by kind, and the nats of each next text."""

    right: dict[str, list[float]] = field(default_factory=dict)
    nats: dict[str, list[float]] = field(default_factory=dict)
    text: list[float] = field(default_factory=list)

    def add(self, other: Answers) -> None:
        """Take the answers about another document."""
        for mine, more in ((self.right, other.right), (self.nats, other.nats)):
            for kind, found in more.items():
                mine.setdefault(kind, []).extend(found)
        self.text.extend(other.text)

    def share(self, *kinds: str) -> float | None:
        """The mean share of right answers of some kinds; None without any."""
        found = [one for kind in kinds for one in self.right.get(kind, [])]
        return fmean(found) if found else None

    def perplexity(self) -> float:
        """Of the next texts."""
        return math.exp(fmean(self.text))

    def detail(self) -> dict[str, Any]:
        """The raw samples."""
        return {"right": self.right, "nats": self.nats, "nats of next text": self.text}


def document(
    encode: Encode,
    texts: Haystacks,
    kinds: dict[str, int],
    length: int,
    seed: int,
    *,
    before: int = 0,
    depth: float | None = None,
    continued: int = 0,
) -> Document:
    """A text of `length` tokens with so many facts of each kind, and `continued` tokens that follow it.

    `before` and `depth` are those of `hide`.
    """
    rng = random.Random(seed)
    every = [kind for kind, n in kinds.items() for _ in range(n)]
    asked = questions(every, rng, taught=False)
    # the lines take the place of the text's last tokens, so that what follows is moved up to them
    taken = sum(len(encode(f"\n{line}\n")) for one in asked for line in one.lines)
    # it ends where a piece does, so that it does go on with the text
    cut = (taken - length - continued) % PIECE if continued else 0
    hay_L = texts.make(cut + length + continued, seed)[cut:]
    text_L = hide(hay_L[:length], asked, encode, rng, before, depth)
    return Document(text_L, asked, hay_L[length - taken : length - taken + continued])


@torch.no_grad()
def answers(
    model: Any,
    encode: Encode,
    method: Any,
    documents: Iterable[Document],
    *,
    reads: str = "without",
    chunk: int = 16384,
    watch: Callable[[], Any] | None = None,
    together: bool = False,
) -> Answers:
    """What a model with a method answers; None is the stock model.

    Args:
        model: In eval mode.
        encode: Text to token ids.
        method: An attention method, or None.
        documents: See `document`.
        reads: "without": documents are read without look-ups, and questions look up. "with": all look up.
        chunk: Tokens of a forward pass.
        watch: Makes a context in which questions are asked.
        together: All questions about a document are asked at once, as rows of one batch.
    """
    found = Answers()
    with method.on(model) if method is not None else nullcontext():
        looks_up = method is not None and method.looks_up
        for one in documents:
            look_up = not looks_up or reads == "with"
            cache = stream(model, one.ids_L, chunk=chunk, bounded=False, look_up=look_up).cache
            with watch() if watch is not None else nullcontext():
                if together:
                    told = asked_together(model, encode, copy.deepcopy(cache), one.questions)
                else:
                    told = [asked(model, encode, copy.deepcopy(cache), each) for each in one.questions]
                for each, (right, nats) in zip(one.questions, told, strict=True):
                    found.right.setdefault(each.kind, []).append(right)
                    found.nats.setdefault(each.kind, []).append(nats)
            if len(one.next_N) > 1:
                # the last token read predicts the first of these, but its logits are gone
                nll_N, _ = _scored(model, cache, one.next_N, len(one.next_N) - 1)
                found.text.append(float(nll_N.mean()))
    return found


@torch.no_grad()
def asked(model: Any, encode: Encode, cache: Any, one: Question) -> tuple[float, float]:
    """The share of an answer's parts that greedy decoding would write after what is right before them, and its nats.

    The cache is read on. Nats are per token of the answer.
    """
    begun, parts = _written(encode, one)
    ids = torch.tensor([*begun, *(i for part in parts for i in part)])
    return _judged(*_scored(model, cache, ids, len(ids) - len(begun)), parts)


@torch.no_grad()
def asked_together(model: Any, encode: Encode, cache: Any, questions: Sequence[Question]) -> list[tuple[float, float]]:
    """What `asked` says of each of several questions about the text in a cache of one row, which is read on.

    They are rows of one batch. Shorter ones go on with tokens behind their answer, which nothing before them sees. On a
    GPU a few tokens are read at a time, which the kernels of look-ups serve for all rows at once.
    """
    written = [_written(encode, one) for one in questions]
    texts = [torch.tensor([*begun, *(i for part in parts for i in part)]) for begun, parts in written]
    ids_QL = pad_sequence(texts, batch_first=True).to(model.device)
    cache.batch_repeat_interleave(len(questions))
    pieces = ids_QL.split(_at_once(ids_QL), 1)
    logits_QLV = torch.cat(
        [model(input_ids=piece, **given_cache(model, cache), use_cache=True).logits for piece in pieces], 1
    )
    told = []
    for ids_L, logits_LV, (begun, parts) in zip(texts, logits_QLV, written, strict=True):
        told.append(_judged(*_likely(logits_LV[len(begun) - 1 : len(ids_L) - 1], ids_L[len(begun) :]), parts))
    return told


def _at_once(ids_QL: Tensor) -> int:
    """How many tokens of each row are read at a time."""
    return FEW if ids_QL.is_cuda else ids_QL.shape[1]


def _written(encode: Encode, one: Question) -> tuple[list[int], list[list[int]]]:
    """The ids of what is asked, and those of each part of the answer."""
    return encode(f"\n{one.asked}"), [encode(f" {part}") for part in one.answers]


def _judged(nll_N: Tensor, hit_N: Tensor, parts: list[list[int]]) -> tuple[float, float]:
    """The share of parts all of whose tokens are right, and the nats per token."""
    hits = hit_N.split([len(part) for part in parts])
    return fmean(float(hit.all()) for hit in hits), float(nll_N.mean())


def _scored(model: Any, cache: Any, ids_L: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Nats of the last `n` tokens, and whether each is the most likely one; the cache is read on."""
    ids_L = ids_L.to(model.device)
    logits = model(input_ids=ids_L[None], **given_cache(model, cache), use_cache=True, logits_to_keep=n + 1).logits
    return _likely(logits[0, :-1], ids_L[-n:])


def _likely(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of tokens, and whether each is the most likely one; on the CPU."""
    logits_NV, target_N = logits_NV.float(), target_N.to(logits_NV.device)
    return F.cross_entropy(logits_NV, target_N, reduction="none").cpu(), (logits_NV.argmax(-1) == target_N).cpu()
