"""Documents full of facts, read once by a model, and what it answers to the questions about them."""

# L tokens of a text, N tokens that are scored, V vocabulary
from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longctx import stream
from hf_longctx.upstream.caches import given_cache

from ..haystacks import Haystacks
from .facts import Encode, Question, hide, names, question

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
    own = names(rng, len(every), taught=False)
    asked = [question(kind, name, rng, taught=False) for kind, name in zip(every, own, strict=True)]
    hay_L = texts.make(length + continued, seed)
    # the lines take the place of the text's last tokens, so that what follows is moved up to them
    taken = sum(len(encode(f"\n{line}\n")) for one in asked for line in one.lines)
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
    """
    found = Answers()
    with method.on(model) if method is not None else nullcontext():
        looks_up = method is not None and method.looks_up
        for one in documents:
            look_up = not looks_up or reads == "with"
            cache = stream(model, one.ids_L, chunk=chunk, bounded=False, look_up=look_up).cache
            with watch() if watch is not None else nullcontext():
                for each in one.questions:
                    right, nats = asked(model, encode, copy.deepcopy(cache), each)
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
    parts = [encode(f" {part}") for part in one.answers]
    begun = encode(f"\n{one.asked}")
    ids = torch.tensor([*begun, *(i for part in parts for i in part)])
    nll_N, hit_N = _scored(model, cache, ids, len(ids) - len(begun))
    hits = hit_N.split([len(part) for part in parts])
    return fmean(float(hit.all()) for hit in hits), float(nll_N.mean())


def _scored(model: Any, cache: Any, ids_L: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Nats of the last `n` tokens, and whether each is the most likely one; the cache is read on."""
    ids_L = ids_L.to(model.device)
    logits = model(input_ids=ids_L[None], **given_cache(model, cache), use_cache=True, logits_to_keep=n + 1).logits
    logits_NV, target_N = logits[0, :-1].float(), ids_L[-n:]
    return F.cross_entropy(logits_NV, target_N, reduction="none").cpu(), (logits_NV.argmax(-1) == target_N).cpu()
