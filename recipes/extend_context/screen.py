"""Settings side by side: each trained for a minute and a half, and measured at few places.

    python -m recipes.extend_context.screen --documents data/documents --variants base short_first near_facts+pose
    python -m recipes.extend_context.screen --documents data/documents --averaged 0.3 0.5
    python -m recipes.extend_context.screen --list

`base` is the config without a variant; names that are joined by + are one setting. `--averaged` measures each trained
model once more with so much of the stock weights in its own: that needs no training. Where there are several GPUs,
each trains a variant at a time. Rows of an earlier call on the same hardware and versions stay in the result
file. A variant that fails costs no other one's rows; if it fails when it is measured, the same command measures its
trained model, without training it again. `--list` trains nothing: it tells what each variant changes, and how many
facts it asks for. What comes out chooses what is trained in full; it is no result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import traceback
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hf_longctx.evaluation.results import environment, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from hf_longctx.hub.resolve import load_tokenizer, locate
from hf_longctx.upstream.installing import check_packages
from recipes.averaging import average_
from recipes.benchmarks.saving import Saved
from recipes.cards import free, visible
from recipes.config import merged, variants_of
from recipes.extend_context import card
from recipes.extend_context.cards import over_cards
from recipes.extend_context.corpus import Corpus, prepare
from recipes.extend_context.count import table
from recipes.extend_context.measure import NEEDS, Measured, moved, needed, own_answers, probe
from recipes.extend_context.model import load_extended, save_native
from recipes.extend_context.rehearsal import check, rehearsal_of
from recipes.extend_context.settings import DEFAULT, WHOLE, checked, read_config
from recipes.extend_context.stock import Stock
from recipes.extend_context.train import trained
from recipes.extend_context.windows import Windows
from recipes.outs import new_file
from recipes.resuming import fingerprints

BASE = "base"
packages = NEEDS  # of this command
MODULE = "recipes.extend_context.screen"
KEPT = "trained.json"  # beside a model that is yet to be measured
FEW = {"windows": 8, "trials": 2, "chats": 20}


def few(settings: dict[str, Any]) -> dict[str, Any]:
    """The config's `evaluation` at the trained length and the longest, facts at the shortest length and the longest."""
    _, *rest = sorted(settings["lengths"])
    facts = sorted(settings["retrieval"])
    less = {key: min(settings[key], most) for key, most in FEW.items()}
    return settings | less | {"lengths": rest, "retrieval": sorted({facts[0], facts[-1]}), "scaled": {}}


def measured(configs: dict[str, dict[str, Any]], seconds: float, shares: list[float]) -> Iterator[dict[str, Any]]:
    """A row for each setting, and for each share of stock weights in it.

    Raises:
        SystemExit: At the end, if some failed. The rows of the others come before.
    """
    first, failed = next(iter(configs.values())), list[str]()
    begun, tokenizer = load_extended(first)
    for config in configs.values():
        check(config, tokenizer)
    weights = dict(begun.named_parameters())  # of the stock model, whatever its positions
    corpus = prepare(first, tokenizer)
    settings = few(first["evaluation"])
    probe(tokenizer, corpus.held, settings)
    stock, _ = load(first["model"], dtype=first["save_dtype"])
    answers = own_answers(stock, tokenizer, settings["chats"])
    trained_length = stock.config.max_position_embeddings
    before = Measured(stock, tokenizer, corpus.held, settings | {"retrieval": []}, None).all(answers, trained_length)
    del stock
    for name, config in configs.items():
        try:
            found = trained_once(config, corpus, tokenizer, seconds)
            for share in [config["averaged"], *(share for share in shares if share > config["averaged"])]:
                after = after_training(config, corpus, settings, answers, weights, share)
                what = name if share == config["averaged"] else f"{name}, {share} of the stock weights"
                yield in_a_row(what, before, after, found)
        except Exception:  # the other variants are worth having
            traceback.print_exc()
            kept = (Path(config["out"]) / KEPT).exists()
            failed.append(f"{name} (what was trained is kept in {config['out']})" if kept else name)
        else:
            shutil.rmtree(config["out"])
        free()
    if failed:
        raise SystemExit(f"these variants failed: {', '.join(failed)}.")


def trained_once(config: dict[str, Any], corpus: Corpus, tokenizer: Any, seconds: float) -> dict[str, Any]:
    """Train and save the model; what is told of it. One that an earlier call could not measure is not trained again."""
    out, free = Path(config["out"]), {"out", "evaluation", "documents"}
    decides = {key: value for key, value in config.items() if key not in free}
    told = fingerprints(decides | {"data": corpus.mark, "seconds": seconds, "where": environment()})
    before = json.loads((out / KEPT).read_text(encoding="utf-8")) if (out / KEPT).exists() else {}
    if before.get("settings") == told:
        print(f"{out} has been trained: it is measured", flush=True)
        return dict(before["found"])
    shutil.rmtree(out, ignore_errors=True)
    model, _ = load_extended(config)
    if seconds:
        windows = Windows(corpus.training, tokenizer, config)
        stock = Stock(config)
        windows.own = rehearsal_of(config, corpus.training, out, stock)
        found = trained(model, tokenizer, windows, config, seconds, False, stock)
    else:
        save_native(model, tokenizer, out / "model", config["save_dtype"])
        found = {"tokens": 0, "losses": []}
    write_results(out / KEPT, {"settings": told, "found": found})
    return found


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
    for measure, nats in moved(after, before).items():
        beside[measure.replace("loss", "nats")] = nats
    for kind in ("passkey", "needle"):
        for length, cells in after.get(kind, {}).items():
            beside[f"{kind}, {int(length):,} tokens"] = sum(cells.values())
    beside |= {"tokens": found["tokens"], "last loss": found["losses"][-1] if found["losses"] else None}
    return row(f"{what}: perplexity, {first}", value, "", beside=beside, detail={"after": after})


def words_of(args: argparse.Namespace) -> list[str]:
    """The arguments for a process that measures some of the variants."""
    named = {"config": args.config, "model": args.model, "documents": args.documents, "commit": args.commit}
    words = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
    shares = ["--averaged", *map(str, args.averaged)] if args.averaged else []
    return [*words, "--seconds", str(args.seconds), *shares]


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--variants", nargs="+", help="of the config, some joined by +; base, the default, is none")
    parser.add_argument("--list", action="store_true", help="tell what the variants change; by default, of each")
    parser.add_argument("--averaged", nargs="+", type=float, default=[], help="shares of the stock weights")
    parser.add_argument(
        "--seconds", type=float, default=85, help="of each training; 0 measures the new positions without any"
    )
    parser.add_argument("--tokens", type=int, help="of the training that --list counts, in place of the config's")
    parser.add_argument("--model", help="a folder, a Hub id or a .gguf file, in place of the config's")
    parser.add_argument("--documents", help="a folder of .txt files, in place of the config's")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", type=new_file, default="extend-context-screen.json", help="the result file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parsed(arguments)
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    given = {key: value for key in ("model", "documents") if (value := getattr(args, key)) is not None}
    given |= {"tokens": args.tokens} if args.list and args.tokens else {}
    every = {BASE: {}} | variants_of(args.config)
    names = args.variants or ([*every] if args.list else [BASE])
    configs = {}
    for name in names:
        config = read_config(args.config, None if name == BASE else name)
        folder = args.out.parent / f"{args.out.stem}-{name}"
        configs[name] = checked(config | given | {"out": str(folder)})
    model = configs[names[0]]["model"]
    if args.list:
        changes = {}
        for name in names:
            own = (every[one] for one in name.split("+"))
            changes[name] = reduce(lambda first, second: merged(first, second, WHOLE), own)
        for line in table(configs, changes, load_tokenizer(model)):
            print(line)
        return
    check_packages(needed(configs[names[0]]["evaluation"]))
    device, label = "cuda" if torch.cuda.is_available() else "cpu", Path(model).name
    cards = visible()
    if len(cards) > 1:
        locate(model)  # a .gguf file is converted now, by one process
        rows = over_cards(MODULE, words_of(args), names, cards[: len(names)], args.out)
    else:
        rows = measured(configs, args.seconds, args.averaged)
    Saved(args.out, label, device, args.commit).add(rows)


if __name__ == "__main__":
    main()
