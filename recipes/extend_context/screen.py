"""Settings side by side: each trained for a minute and a half, and measured at few places.

    python -m recipes.extend_context.screen --documents data/documents --variants base short_first rate_5e-4 many_facts
    python -m recipes.extend_context.screen --documents data/documents --averaged 0.3 0.5

`base` is the config without a variant. `--averaged` measures each trained model once more with so much of the stock
weights in its own: that needs no training. What comes out chooses what is trained in full; it is no result.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from recipes.benchmarks.reading import finish
from recipes.extend_context import card
from recipes.extend_context.corpus import Corpus, prepare
from recipes.extend_context.measure import TOLD, Measured, own_answers
from recipes.extend_context.model import average_, load_extended
from recipes.extend_context.settings import DEFAULT, checked, read_config
from recipes.extend_context.train import trained
from recipes.extend_context.windows import Windows

BASE = "base"
FEW = {"windows": 8, "trials": 2, "chats": 20}


def few(settings: dict[str, Any]) -> dict[str, Any]:
    """The config's `evaluation` at the trained length and the longest, facts at the shortest length and the longest."""
    _, *rest = sorted(settings["lengths"])
    facts = sorted(settings["retrieval"])
    less = {key: min(settings[key], most) for key, most in FEW.items()}
    return settings | less | {"lengths": rest, "retrieval": sorted({facts[0], facts[-1]}), "scaled": {}}


def measured(configs: dict[str, dict[str, Any]], seconds: float, shares: list[float]) -> Iterator[dict[str, Any]]:
    """A row for each setting, and for each share of stock weights in it."""
    first = next(iter(configs.values()))
    begun, tokenizer = load_extended(first)
    weights = dict(begun.named_parameters())  # of the stock model, whatever its positions
    corpus = prepare(first, tokenizer)
    settings = few(first["evaluation"])
    stock, _ = load(first["model"], dtype=first["save_dtype"])
    answers = own_answers(stock, tokenizer, settings["chats"])
    trained_length = stock.config.max_position_embeddings
    before = Measured(stock, tokenizer, corpus.held, settings | {"retrieval": []}, None).all(answers, trained_length)
    del stock
    for name, config in configs.items():
        shutil.rmtree(config["out"], ignore_errors=True)
        model, _ = load_extended(config)
        found = trained(model, tokenizer, Windows(corpus.training, tokenizer, config), config, seconds, False)
        del model
        for share in [config["averaged"], *(share for share in shares if share > config["averaged"])]:
            after = after_training(config, corpus, settings, answers, weights, share)
            what = name if share == config["averaged"] else f"{name}, {share} of the stock weights"
            yield in_a_row(what, before, after, found)
        shutil.rmtree(config["out"])


def after_training(
    config: dict[str, Any],
    corpus: Corpus,
    settings: dict[str, Any],
    answers: Any,
    stock: dict[str, Tensor],
    share: float,
) -> dict[str, Any]:
    """The measures of a trained model, with more of the stock weights in it than it was saved with."""
    model, tokenizer = load(Path(config["out"]) / "model", dtype=config["save_dtype"])
    if share > config["averaged"]:
        average_(model, stock, (share - config["averaged"]) / (1 - config["averaged"]))
    return Measured(model, tokenizer, corpus.held, settings, None).all(answers, model.config.max_position_embeddings)


def in_a_row(what: str, before: dict[str, Any], after: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Perplexity over the stock model's, and all else beside."""
    ratios = card.comparisons({"after": after, "before": before})
    (first, value), *others = ((name, one["mean"]) for name, one in ratios.items())
    beside: dict[str, Any] = {f"perplexity, {name}": one for name, one in others}
    if TOLD in after and TOLD in before:
        beside["nats on stock's answers"] = after[TOLD] - before[TOLD]
    for kind in ("passkey", "needle"):
        for length, cells in after.get(kind, {}).items():
            beside[f"{kind}, {int(length):,} tokens"] = sum(cells.values())
    beside |= {"tokens": found["tokens"], "last loss": found["losses"][-1] if found["losses"] else None}
    return row(f"{what}: perplexity, {first}", value, "", beside=beside, detail={"after": after})


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--variants", nargs="+", default=[BASE], help="of the config; base is none of them")
    parser.add_argument("--averaged", nargs="+", type=float, default=[], help="shares of the stock weights")
    parser.add_argument("--seconds", type=float, default=85, help="of each training")
    parser.add_argument("--model", help="a folder, a Hub id or a .gguf file, in place of the config's")
    parser.add_argument("--documents", help="a folder of .txt files, in place of the config's")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=Path, default=Path("extend-context-screen.json"), help="the result file")
    args = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    given = {key: value for key in ("model", "documents") if (value := getattr(args, key)) is not None}
    configs = {}
    for name in args.variants:
        config = read_config(args.config, None if name == BASE else name)
        folder = args.out.parent / f"{args.out.stem}-{name}"
        configs[name] = checked(config | given | {"out": str(folder)})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, label = measured(configs, args.seconds, args.averaged), Path(configs[args.variants[0]]["model"]).name
    finish(SimpleNamespace(device=device), rows, args, "extend_context_screen", label=label)


if __name__ == "__main__":
    main()
