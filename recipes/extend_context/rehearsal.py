"""Texts that the stock model writes itself, which keep the trained one from forgetting: self-synthesized rehearsal.

Huang et al. 2024 (https://arxiv.org/abs/2403.01244) train on what a model answers to prompts that it made up. Here it
goes on from a few tokens of the training documents, without a chat, and windows of what it wrote are trained towards
its distribution of the next token.
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
from hf_longctx.hub import load

FILE = "rehearsal.json"
BATCH, LONGEST = 256, 512  # texts that are written at once, and their tokens at most


def rehearsal_of(config: dict[str, Any], documents: dict[str, Tensor], out: Path) -> Tensor | None:
    """The rows of a run, (R, T + 1), kept in its folder, so that a resumed run has the same; None: it has none."""
    settings = config["rehearsal"]
    if settings is None:
        return None
    if not (out / FILE).exists():
        model, tokenizer = load(config["model"], dtype=config["save_dtype"])
        rows = written(model, tokenizer, documents, settings, config["training"].get("seed", 0))
        write_results(out / FILE, {"rows": rows.tolist()})
    return torch.tensor(json.loads((out / FILE).read_text(encoding="utf-8"))["rows"])


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
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        while len(stream) <= wanted:
            picked = rng.choices(fit, [len(ids) for ids in fit], k=min(BATCH, -(-wanted // LONGEST)))
            places = [rng.randrange(len(ids) - start + 1) for ids in picked]
            prompts = torch.stack([ids[at : at + start].long() for ids, at in zip(picked, places, strict=True)])
            prompts = prompts.to(model.device)
            answers = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=min(LONGEST, length), pad_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            for row in answers.tolist():
                body = row[start:]
                ends = body.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in body else len(body)
                stream += row[: start + ends]
    count = (len(stream) - 1) // length
    return torch.tensor([stream[n * length : (n + 1) * length + 1] for n in range(count)])
