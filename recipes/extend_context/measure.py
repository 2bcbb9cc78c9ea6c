"""What a model reads: perplexity of the same tokens with more context, pass keys, needles, stock's own answers."""

# L tokens of a window
from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_longctx.evaluation.answer import answer
from hf_longctx.evaluation.passkey import MAX_NEW_TOKENS, passkey_grid, passkey_prompts
from hf_longctx.evaluation.perplexity import fixed_targets, read
from hf_longctx.upstream.installing import Package

from . import needles
from .sampling import FREE, seeded

ANSWER = 96  # tokens of an answer to a prompt
TOLD = "loss on stock's answers"  # the name of this measure; of its likeliest answers
SAMPLED = "loss on stock's sampled answers"  # above stock's own, an estimate of the divergence from its distribution
Answers = dict[str, list[tuple[list[int], int]]]  # by measure: ids of prompt and answer, and how many the answer has
TOPICS = ("rivers", "bicycles", "windows", "bees", "maps", "teapots", "violins", "snowflakes", "bridges", "candles")
ASKED = (
    "Explain in simple words how {} are made or formed.",
    "Write a short poem about {}.",
    "Give me three interesting facts about {}.",
    "What should a beginner know about {}?",
    "Write a friendly e-mail to a colleague about {}.",
)


def curve(model: Any, ids: Tensor, lengths: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Of each context length, the mean loss of the last tokens of each window of a document, in nats.

    Windows end at places that depend on the document and the longest length of the settings, so that models compare.
    """
    targets, longest = settings["targets"], max(settings["lengths"])
    ends = window_ends(len(ids), longest, targets, settings["windows"])
    windows = [ids[end - longest : end].long() for end in ends]
    # one piece, which is causal attention without a mask, then the targets
    scores = fixed_targets(model, windows, lengths, n_targets=targets, chunk=longest, score_chunk=targets)
    return {"ends": ends, "nll": {str(one.length): list(one.nll) for one in scores}}


def window_ends(tokens: int, longest: int, targets: int, most: int) -> list[int]:
    """Evenly over a document; no token is a target twice."""
    count = min(most, (tokens - longest) // targets + 1)
    return [longest + (tokens - longest) * n // max(count - 1, 1) for n in range(count)]


def found_keys(model: Any, tokenizer: Any, length: int, hay: list[int], settings: dict[str, Any]) -> dict[str, int]:
    """How many pass keys are found at each depth; `length` is that of prompt and answer."""
    cells = passkey_grid(
        model,
        tokenizer,
        lengths=[length - MAX_NEW_TOKENS],
        depths=depths(settings),
        trials=settings["trials"],
        haystack=hay,
        batch_size=max(settings["batch_tokens"] // length, 1),
    )
    return {f"{cell.depth:.2f}": cell.correct for cell in cells}


def found_needles(model: Any, tokenizer: Any, length: int, hay: list[int], settings: dict[str, Any]) -> dict[str, int]:
    """How many needles are found at each depth; `length` is that of prompt and answer."""
    most = max(settings["batch_tokens"] // length, 1)
    return needles.found(model, tokenizer, length, hay, depths(settings), settings["trials"], most)


def one_key(tokenizer: Any, length: int, hay: list[int]) -> object:
    """A prompt as `found_keys` makes them."""
    return passkey_prompts(tokenizer, length - MAX_NEW_TOKENS, 0.0, trials=1, haystack=hay)


def one_needle(tokenizer: Any, length: int, hay: list[int]) -> object:
    """A prompt as `found_needles` makes them."""
    return needles.prompt(tokenizer, hay, length, 0.0, "probe")


class Retrieval(NamedTuple):
    """A measure of what is found again at each length.

    Args:
        found: Asks a model.
        one: Makes a prompt of a length, without a model: what is wrong with the settings is known before a training.
        packages: The optional packages that prompts are made with.
    """

    found: Callable[[Any, Any, int, list[int], dict[str, Any]], dict[str, int]]
    one: Callable[[Any, int, list[int]], object]
    packages: tuple[Package, ...] = ()


RETRIEVAL = {"passkey": Retrieval(found_keys, one_key), "needle": Retrieval(found_needles, one_needle, needles.NEEDS)}
NEEDS = tuple(package for measure in RETRIEVAL.values() for package in measure.packages)


def needed(settings: dict[str, Any]) -> tuple[Package, ...]:
    """The optional packages of an evaluation."""
    return NEEDS if settings["retrieval"] else ()


def probe(tokenizer: Any, held: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Make a prompt of each kind and length, before anything is trained.

    Raises:
        ImportError: A package is missing.
        ValueError: A length holds no prompt.
    """
    chat_prompts(tokenizer, min(settings["chats"], 1))
    hay = first_of(held)
    for length in settings["retrieval"]:
        for measure in RETRIEVAL.values():
            measure.one(tokenizer, length, hay)


def first_of(held: dict[str, Tensor]) -> list[int]:
    """The text in which facts are hidden."""
    found: list[int] = next(iter(held.values())).tolist()
    return found


def depths(settings: dict[str, Any]) -> list[float]:
    """From the first to the last place."""
    count = settings["depths"]
    return [n / max(count - 1, 1) for n in range(count)]


def questions() -> list[str]:
    """What is asked in chats, which nothing that is trained on may repeat."""
    return [ask.format(topic) for ask in ASKED for topic in TOPICS]


def chat_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of a chat, as ids."""
    return chat_ids(tokenizer, questions()[:count])


def chat_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """Prompts as the tokenizer's chat template renders them, if it has one, up to where an answer begins."""
    if tokenizer.chat_template:
        told = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in told]
    return [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]


def own_answers(model: Any, tokenizer: Any, count: int) -> Answers:
    """What the model itself answers to prompts of a chat: the likeliest tokens, and sampled from its distribution.

    A model that was trained towards the likeliest answers makes these likelier still, and may yet have moved away: of
    the sampled ones the loss above the stock model's is the Kullback-Leibler divergence, on average.
    """
    ids, found = chat_prompts(tokenizer, count), Answers()
    if not ids:
        return found
    with seeded(model, 0):
        for name, how in ((TOLD, {}), (SAMPLED, FREE)):
            texts = answer(model, tokenizer, ids, ANSWER, **how)
            answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            found[name] = [(one + own, len(own)) for one, own in zip(ids, answers, strict=True) if own]
    return found


def moved(after: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """Nats a token that the stock model's answers have lost, by measure, where both have it."""
    return {name: after[name] - before[name] for name in (TOLD, SAMPLED) if name in after and name in before}


def loss_on(model: Any, answers: list[tuple[list[int], int]]) -> float:
    """Nats per token of answers, whoever gave them."""
    nll = [read(model, torch.tensor([ids]), n_targets=own)[0] for ids, own in answers]
    return float(torch.cat(nll).double().mean())


class Measured:
    """Measures of a model, in the order of their weight, as long as there is time.

    Args:
        model: In eval mode, on its device.
        tokenizer: Its tokenizer.
        held: The held-back documents.
        settings: The config's `evaluation`.
        until: Of `time.monotonic`; None: all is measured.
        into: An empty dictionary that takes the measures.
        kept: Called after each of them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        held: dict[str, Tensor],
        settings: dict[str, Any],
        until: float | None,
        *,
        into: dict[str, Any] | None = None,
        kept: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.held, self.settings, self.until = model, tokenizer, held, settings, until
        self.found: dict[str, Any] = {} if into is None else into
        self.found |= {"curves": {}, "not measured": []}
        self.kept = kept

    def all(self, answers: Answers, most: int) -> dict[str, Any]:
        """Contexts of at most `most` tokens."""
        lengths = [length for length in self.settings["lengths"] if length <= most]
        for name, ids in self.held.items():
            self._add("curves", name, partial(curve, self.model, ids, lengths, self.settings))
        for name, some in answers.items():
            if some:
                self._add(name, "", partial(loss_on, self.model, some))
        hay = first_of(self.held)
        for length in sorted((n for n in self.settings["retrieval"] if n <= most), reverse=True):
            for what, measure in RETRIEVAL.items():
                found = partial(measure.found, self.model, self.tokenizer, length, hay, self.settings)
                self._add(what, str(length), found)
        return self.found

    def _add(self, what: str, name: str, measure: Callable[[], Any]) -> None:
        if self.until is not None and time.monotonic() > self.until:
            self.found["not measured"].append(f"{what} {name}".strip())
        elif name:
            self.found.setdefault(what, {})[name] = measure()
        else:
            self.found[what] = measure()
        if self.kept is not None:
            self.kept()
