"""Texts that the stock model writes itself, which keep the trained one from forgetting: self-synthesized rehearsal.

Huang et al. 2024 (https://arxiv.org/abs/2403.01244) train on what a model answers to prompts that it made up. Here it
goes on from a few tokens of the training documents, or it writes chats (`chats.py`), and windows of what it wrote are
trained towards its distribution of the next token, or towards what it wrote.
"""

# R rows, T tokens of a row and one more, the last target
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx.evaluation.results import write_results

from .chats import turn_of, written_chats
from .facts import Row
from .sampling import FREE, seeded
from .stock import Stock

FILE = "rehearsal.json"
BATCH, LONGEST = 256, 512  # texts that are written at once, and their tokens at most


def of_chats(config: dict[str, Any]) -> bool:
    """Whether what is rehearsed are chats, not texts that begin as documents do."""
    return config["rehearsal"] is not None and config["rehearsal"].get("of", "documents") == "chats"


def check(config: dict[str, Any], tokenizer: Any) -> None:
    """ValueError if a model with this tokenizer cannot write what is to be rehearsed."""
    if of_chats(config):
        turn_of(tokenizer)


def rehearsal_of(config: dict[str, Any], documents: dict[str, Tensor], out: Path, stock: Stock) -> list[Row] | None:
    """The rows of a run, kept in its folder, so that a resumed run has the same; None: it has none."""
    settings, file = config["rehearsal"], out / FILE
    if settings is None:
        return None
    if not file.exists():
        model, tokenizer = stock.loaded()
        seed, dropped = config["training"].get("seed", 0), dict[str, int]()
        if of_chats(config):
            rows, dropped = written_chats(model, tokenizer, settings, seed)
            print(f"{len(rows)} chats are rehearsed; left out: {dropped}", flush=True)
        else:
            texts = written(model, tokenizer, documents, settings, seed).tolist()
            rows = [Row(ids, [float(settings["weight"])] * len(ids)) for ids in texts]
        kept = {"rows": [row.ids for row in rows], "weights": [row.weights for row in rows], "left out": dropped}
        write_results(file, kept)
    kept = json.loads(file.read_text(encoding="utf-8"))
    return [Row(ids, weights) for ids, weights in zip(kept["rows"], kept["weights"], strict=True)]


def written(model: Any, tokenizer: Any, documents: dict[str, Tensor], settings: dict[str, Any], seed: int) -> Tensor:
    """Rows of one text after the other, each with its end, sampled from the model's own distribution.

    Args:
        model: The stock model, in eval mode.
        tokenizer: Its end of a text.
        documents: Token ids, from which the first tokens of each text are taken anywhere.
        settings: `rehearsal` of the config.
        seed: Of the beginnings and of the samples.
    """
    length, start, wanted = settings["length"], settings["start"], settings["tokens"]
    rng, fit = random.Random(seed), [ids for ids in documents.values() if len(ids) >= start]
    stream: list[int] = []
    with seeded(model, seed):
        while len(stream) <= wanted:
            picked = rng.choices(fit, [len(ids) for ids in fit], k=min(BATCH, -(-wanted // LONGEST)))
            places = [rng.randrange(len(ids) - start + 1) for ids in picked]
            prompts = torch.stack([ids[at : at + start].long() for ids, at in zip(picked, places, strict=True)])
            prompts = prompts.to(model.device)
            answers = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=min(LONGEST, length),
                pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, **FREE,
            )  # fmt: skip
            for row in answers.tolist():
                body = row[start:]
                ends = body.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in body else len(body)
                stream += row[: start + ends]
    count = (len(stream) - 1) // length
    return torch.tensor([stream[n * length : (n + 1) * length + 1] for n in range(count)])
