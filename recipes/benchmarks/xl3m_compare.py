"""XL3M beside the methods that read everything: ten questions about each text, which those methods read once."""

from __future__ import annotations

import copy
import random
import string
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_longctx import LMInfinite, LongContextMethod, RopeScaling
from hf_longctx.evaluation.rows import row
from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.frame import Frame
from hf_longctx.generation.xl3m.prompt import Parts
from hf_longctx.upstream.caches import generate_cache, given_cache

from .haystacks import put
from .reading import TRAINED, K
from .xl3m_bench import OWN, Bench

CACHE = 25e9  # bytes of the caches that are read at once
CHUNK = 16 * K


@dataclass(frozen=True)
class Asked:
    """One text and questions of one length about it, each with the answers that the output must contain."""

    head: list[int]
    text: Tensor
    questions: list[list[int]]
    answers: list[list[str]]
    new_tokens: int


def multi_key(bench: Bench, length: int, n: int) -> Asked:
    """A number for each of `n` keys; one key is asked for (RULER, multi-key)."""
    return _needles(bench, length, n, values=1)


def multi_value(bench: Bench, length: int, n: int) -> Asked:
    """Four numbers for each of `n` keys; all of one key are asked for (RULER, multi-value)."""
    return _needles(bench, length, n, values=4)


def variable_tracking(bench: Bench, length: int, n: int) -> Asked:
    """`n` chains of five assignments; all variables of one chain are asked for (RULER)."""
    rng = random.Random(f"variables/{length}")
    values = [str(value) for value in rng.sample(range(10_000, 100_000), n)]
    chains = [["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(5)] for _ in values]
    lines = []
    for names, value in zip(chains, values, strict=True):
        given = [value, *(f"VAR {name}" for name in names[:-1])]
        lines.append([f"\nVAR {name} = {before}\n" for name, before in zip(names, given, strict=True)])
    order = [chain for chain in range(n) for _ in range(5)]
    rng.shuffle(order)  # the lines of a chain keep their order
    following = [iter(chain) for chain in lines]
    facts = [bench.ids(next(following[chain])) for chain in order]
    question = (
        "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        "the chain(s) of variable assignment in the text above, 5 variables are assigned the value {value}, they are:"
    )
    head = bench.ids("Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n")
    questions = [bench.ids(question.format(value=value)) for value in values]
    return _hidden(bench, length, head, facts, questions, chains, 48)


def key_value(bench: Bench, length: int, n: int) -> Asked:
    """Nothing but pairs of ten-digit keys and values; one key is asked for."""
    rng = random.Random(f"pairs/{length}")
    head = bench.ids("Extract the value corresponding to the specified key in the JSON object below.\n\n{")
    question = '}}\nKey: "{key}" The value associated with the specified key is: "'
    pairs = [(f"{rng.randrange(10**9, 10**10)}", f"{rng.randrange(10**9, 10**10)}") for _ in range(length // 20)]
    lines = [bench.ids(f'"{key}": "{value}",\n') for key, value in pairs[:2]]
    many = bench.tokenizer([f'"{key}": "{value}",\n' for key, value in pairs], add_special_tokens=False)["input_ids"]
    room = length - len(head) - len(bench.ids(question.format(key=pairs[0][0])))
    count = room // max(map(len, many))
    asked = [pairs[int(count * (i + 0.5) / n)] for i in range(n)]
    text = torch.tensor([token for ids in many[:count] for token in ids])
    assert lines == many[:2]
    questions = [bench.ids(question.format(key=key)) for key, _ in asked]
    return Asked(head, text, questions, [[value] for _, value in asked], 12)


TASKS = {
    "multi-key": multi_key,
    "multi-value": multi_value,
    "variable tracking": variable_tracking,
    "key-value": key_value,
}
READERS: dict[str, tuple[list[LongContextMethod], int | None, int]] = {  # methods, chunk, longest
    "LM-Infinite 8k": ([LMInfinite(n_local=TRAINED)], CHUNK, 10**9),
    "dynamic NTK": ([RopeScaling(type="dynamic", factor=2)], None, 10**9),  # consistent in one piece only
    "LM-Infinite 8k, top_k=5": ([LMInfinite(n_local=TRAINED, top_k=5)], CHUNK, 64 * K),  # by the square of the length
}


def _tasks(bench: Bench) -> dict[str, Callable[[Bench, int, int], Asked]]:
    """All of them, or those that were asked for."""
    return {name: TASKS[name] for name in bench.args.compare_tasks or TASKS}


def own(bench: Bench) -> Iterator[dict[str, Any]]:
    """The model's own answers to the same questions about 2k tokens: the reader's share of a loss."""
    for name, make in _tasks(bench).items():
        asked = make(bench, OWN, bench.args.questions)
        text = asked.text.tolist()
        rows = [[*asked.head, *text, *question] for question in asked.questions]
        share = _recall(bench.answers(rows, asked.new_tokens), asked.answers)
        yield row(f"{name}, {OWN // K}k tokens, {len(rows)} questions: the model's own", share, "")


def kept(bench: Bench) -> Iterator[dict[str, Any]]:
    """The share of the answers in the text that XL3M has the model read: the search without the reader."""
    length = bench.args.compare_lengths[0]
    for name, make in _tasks(bench).items():
        asked = make(bench, length, bench.args.questions)
        rows = [context for context, _ in _searched(bench, asked)]
        share = _recall([bench.tokenizer.decode(context) for context in rows], asked.answers)
        of = sum(map(len, rows)) / len(rows) / length
        yield row(f"{name}, {length // K}k tokens, {len(rows)} questions", share, "", beside={"of the text": of})


def compare(bench: Bench) -> Iterator[dict[str, Any]]:
    """The mean share of the answers that the output contains, for every task, length and method."""
    end = time.monotonic() + bench.args.seconds
    slow: dict[str, str] = {}
    for length in bench.args.compare_lengths:
        slow |= {
            name: f"{name} not run: its time grows with the square of the length"
            for name, (_, _, longest) in READERS.items()
            if length > longest
        }
        for name, make in _tasks(bench).items():
            if time.monotonic() > end:
                return
            asked = make(bench, length, bench.args.questions)
            found: dict[str, float | None] = {}
            seconds: dict[str, float] = {}
            for method, work in _methods().items():
                if method in slow:
                    found[method] = None
                    continue
                start = time.perf_counter()
                try:
                    found[method] = _recall(work(bench, asked), asked.answers)
                except torch.OutOfMemoryError:
                    found[method] = None
                    slow[method] = f"{method} ran out of memory"
                torch.cuda.empty_cache()
                seconds[method] = time.perf_counter() - start
                if seconds[method] > bench.args.patience:
                    slow[method] = f"{method} not run again: {seconds[method]:.0f} s per text"
            ours = found.pop("XL3M")
            yield row(
                f"{name}, {length // K}k tokens, {len(asked.questions)} questions",
                ours,
                "",
                beside=found,
                why="; ".join(slow[m] for m, value in found.items() if value is None) or None,
                detail={"seconds": seconds, "length": length},
            )


def _methods() -> dict[str, Callable[[Bench, Asked], list[str]]]:
    readers = {
        name: lambda b, a, m=methods, c=chunk: _read_once(b, a, m, c) for name, (methods, chunk, _) in READERS.items()
    }
    return {"XL3M": _xl3m, "stock, last 8k only": _truncated, **readers}


def _xl3m(bench: Bench, asked: Asked) -> list[str]:
    rows = [[*asked.head, *context, *question] for context, question in _searched(bench, asked)]
    return bench.answers(rows, asked.new_tokens)


def _searched(bench: Bench, asked: Asked) -> Iterator[tuple[list[int], list[int]]]:
    """The key context of each question, and the question."""
    frame = Frame(bench.model, XL3M(), asked.new_tokens)
    for question in asked.questions:
        context, _ = frame.find(Parts(asked.head, asked.text, question), None, compile=bench.args.compile)
        yield list(context), question


def _truncated(bench: Bench, asked: Asked) -> list[str]:
    text = asked.text.tolist()
    return bench.answers([[*text, *q][-(TRAINED - asked.new_tokens) :] for q in asked.questions], asked.new_tokens)


@torch.no_grad()
def _read_once(bench: Bench, asked: Asked, methods: list[LongContextMethod], chunk: int | None) -> list[str]:
    """The text is read once; each question continues from a copy of the cache."""
    from transformers import DynamicCache

    model = bench.model
    read = torch.cat([torch.tensor(asked.head), asked.text])[None].to(model.device)
    questions = torch.tensor(asked.questions, device=model.device)
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method.on(model))
        cache = DynamicCache(config=model.config)
        for piece in read.split(chunk or read.shape[1], dim=1):
            model(piece, **given_cache(model, cache), use_cache=True, logits_to_keep=1)
        held = sum(t.nbytes for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor))
        at_once = max(1, min(len(questions), int(CACHE // max(held, 1))))
        written: list[str] = []
        for some in questions.split(at_once):
            own = copy.deepcopy(cache) if at_once < len(questions) else cache
            own.batch_repeat_interleave(len(some))
            ids = torch.cat([read.expand(len(some), -1), some], 1)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **generate_cache(own),
                max_new_tokens=asked.new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=0,
                disable_compile=True,
            )
            written += bench.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return written


def _recall(written: list[str], answers: list[list[str]]) -> float:
    shares = [sum(a in text for a in wanted) / len(wanted) for text, wanted in zip(written, answers, strict=True)]
    return sum(shares) / len(shares)


def _needles(bench: Bench, length: int, n: int, values: int) -> Asked:
    rng = random.Random(f"needles/{length}/{values}")
    keys = [str(key) for key in rng.sample(range(10_000, 100_000), n)]
    numbers = [[str(rng.randrange(10**6, 10**7)) for _ in range(values)] for _ in keys]
    facts = [
        bench.ids(f" One of the special magic numbers for {key} is: {number}.")
        for key, own in zip(keys, numbers, strict=True)
        for number in own
    ]
    rng.shuffle(facts)
    many = values > 1
    asks = (
        "\nWhat are all the special magic numbers for {key}" if many else "\nWhat is the special magic number for {key}"
    )
    begins = " The special magic numbers for {key}" if many else " The special magic number for {key}"
    verb = "are" if many else "is"
    question = f"{asks} mentioned in the provided text?{begins} mentioned in the provided text {verb}"
    head = bench.ids(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the numbers afterwards.\n"
    )
    questions = [bench.ids(question.format(key=key)) for key in keys]
    return _hidden(bench, length, head, facts, questions, numbers, 12 if values == 1 else 48)


def _hidden(
    bench: Bench,
    length: int,
    head: list[int],
    facts: list[list[int]],
    questions: list[list[int]],
    answers: list[list[str]],
    new_tokens: int,
) -> Asked:
    hay = bench.hay.make(length - len(head) - len(questions[0]), seed=length % 1000)
    places = [((i + 0.5) / len(facts), ids) for i, ids in enumerate(facts)]
    return Asked(head, put(hay, places), questions, answers, new_tokens)
