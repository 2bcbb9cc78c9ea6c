"""Extend a model's context: train on long texts, measure it beside the stock model, save a stock checkpoint.

    python -m recipes.extend_context.train --config recipes/extend_context/config.yaml --minutes 8
    python -m recipes.extend_context.train --smoke

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from hf_longctx.evaluation.results import environment, write_results
from hf_longctx.hub import load
from hf_longctx.training.checkpoints import last_whole
from hf_longctx.training.memory import TrainingMemory
from hf_longctx.upstream.installing import check_packages
from recipes.averaging import average_
from recipes.benchmarks.reading import command_without_paths
from recipes.cards import one_card
from recipes.clock import Clock, minutes
from recipes.extend_context import card
from recipes.extend_context.corpus import Corpus, prepare
from recipes.extend_context.distil import Teacher
from recipes.extend_context.measure import NEEDS, Measured, needed, own_answers, probe
from recipes.extend_context.model import load_extended, save_native, train_only, with_adapters
from recipes.extend_context.positions import extended
from recipes.extend_context.rehearsal import FILE as REHEARSAL
from recipes.extend_context.rehearsal import check as check_rehearsal
from recipes.extend_context.rehearsal import rehearsal_of
from recipes.extend_context.settings import DEFAULT, checked, differing, read_config, taught
from recipes.extend_context.stock import Stock
from recipes.extend_context.trainer import ExtendTrainer
from recipes.extend_context.windows import Windows
from recipes.outs import new_folder
from recipes.resuming import check_fresh, keep_settings

packages = NEEDS  # of this command


def run(
    config: dict[str, Any], *, minutes: float | None = None, resume: bool = False, command: str | None = None
) -> dict[str, Any]:
    """The recipe: what `report.json` in the folder `out` has too, with the command by which it was called."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    out = Path(config["out"])
    check_packages(needed(config["evaluation"]))
    check_fresh(out, resume)
    set_seed(config["training"].get("seed", 0))
    # what is wrong with the model, the data or the evaluation is said before anything is measured
    model, tokenizer = load_extended(config)
    check_rehearsal(config, tokenizer)
    corpus = prepare(config, tokenizer)
    probe(tokenizer, corpus.held, config["evaluation"])
    windows = Windows(corpus.training, tokenizer, config)
    keep_settings(out, differing(config, corpus.mark), resume=resume)
    if not resume:
        for kept in ("before.json", REHEARSAL):
            (out / kept).unlink(missing_ok=True)
    stock = Stock(config)
    before, answers = measured_before(config, corpus, out, stock)
    windows.own = rehearsal_of(config, corpus.training, out, stock)
    report: dict[str, Any] = {"base": Path(config["model"]).name, "config": config, "documents": corpus.report}
    report |= {"mix": windows.tokens(), "before": before} | ({} if command is None else {"command": command})
    seconds = None if until is None else until - time.monotonic() - 60 * config["evaluation"]["minutes"]
    if seconds is not None and seconds <= 0:
        raise ValueError(
            f"--minutes {minutes}: reading the data and measuring the stock model left no time to train beside the "
            f"{config['evaluation']['minutes']} minutes of the evaluation (evaluation: minutes). Give more."
        )
    report |= trained(model, tokenizer, windows, config, seconds, resume, stock) | environment()
    report |= {"after": {"curves": {}}, "scaled": {}}
    keep = partial(keep_report, report, out)
    keep()
    after, tokenizer = load(out / "model", dtype=config["save_dtype"])
    measured = Measured(after, tokenizer, corpus.held, config["evaluation"], until, into=report["after"], kept=keep)
    measured.all(answers, after.config.max_position_embeddings)
    scaled(config, corpus, out, until, report["scaled"], keep)
    keep()
    card.write(report, out)
    return report


def trained(
    model: Any,
    tokenizer: Any,
    windows: Windows,
    config: dict[str, Any],
    seconds: float | None,
    resume: bool,
    stock: Stock,
) -> dict[str, Any]:
    """Train and save the model; how many tokens, steps and seconds that took. `stock` is taken, or let go."""
    out, cpu = Path(config["out"]), not torch.cuda.is_available()
    begun = {n: weight.detach().clone() for n, weight in model.named_parameters()} if config["averaged"] else {}
    if config["lora"]:
        model = with_adapters(model, config["lora"], config["train"])
    elif config["train"] is not None:
        train_only(model, config["train"])
    args = TrainingArguments(
        output_dir=str(out / "run"),
        use_cpu=cpu,
        max_steps=windows.steps,
        per_device_train_batch_size=1,  # of `Windows`, whose rows are batches
        gradient_accumulation_steps=config["tokens_per_step"] // config["batch_tokens"],
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to=[],
        **(config["training"] | ({"bf16": False} if cpu else {})),
    )
    args = one_card(args)
    teacher = Teacher.of(config, args.device, stock) if taught(config) else None
    stock.let_go()
    clock = Clock(windows.steps, seconds, out / "run/seconds.json")
    trainer = ExtendTrainer(
        model=model,
        args=args,
        memory=TrainingMemory(**config["memory"]),
        clock=clock,
        teacher=teacher,
        train_dataset=windows,
        data_collator=windows.collate,
        processing_class=tokenizer,
    )
    model.config.use_cache = False
    try:
        trainer.train(resume_from_checkpoint=last_whole(args.output_dir) if resume else None)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted after {trainer.state.global_step} steps; --resume goes on from {out}.") from None
    took = clock.passed
    model.config.use_cache = True
    steps = trainer.state.global_step
    found = {"steps": steps, "tokens": steps * config["tokens_per_step"], "seconds": took}
    found["losses"] = [log["loss"] for log in trainer.state.log_history if "grad_norm" in log]
    if not cpu:
        found["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    undo_memory(trainer)
    if config["averaged"]:
        average_(trainer.accelerator.unwrap_model(trainer.model), begun, config["averaged"])
    save_native(trainer.accelerator.unwrap_model(trainer.model), tokenizer, out / "model", config["save_dtype"])
    return found


def keep_report(report: dict[str, Any], out: Path) -> None:
    """Write what is known by now: a run that is killed keeps what it has measured."""
    report["ratios"] = card.comparisons(report)
    write_results(out / "report.json", report)
    write_results(out / "expected.json", card.expected(report))


def scaled(
    config: dict[str, Any],
    corpus: Corpus,
    out: Path,
    until: float | None,
    into: dict[str, Any],
    kept: Callable[[], None],
) -> None:
    """Perplexities at the longest context of the saved model with other positions, without training on long texts."""
    longest = max(config["evaluation"]["lengths"])
    for name, positions in config["evaluation"]["scaled"].items():
        changed = extended(AutoConfig.from_pretrained(out / "model"), positions, longest)
        model, tokenizer = load(out / "model", dtype=config["save_dtype"], config=changed)
        settings = config["evaluation"] | {"retrieval": [], "lengths": [longest]}
        into[name] = {}
        Measured(model, tokenizer, corpus.held, settings, until, into=into[name], kept=kept).all({}, longest)


def undo_memory(trainer: ExtendTrainer) -> None:
    """The model as transformers has it."""
    from hf_longctx import undo

    undo(trainer.accelerator.unwrap_model(trainer.model))


def measured_before(config: dict[str, Any], corpus: Corpus, out: Path, stock: Stock) -> tuple[dict[str, Any], Any]:
    """The stock model's measures within its trained length, and its answers to prompts; kept for a resumed run."""
    file = out / "before.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["measured"], kept["answers"]
    model, tokenizer = stock.loaded()
    answers = own_answers(model, tokenizer, config["evaluation"]["chats"])
    settings = config["evaluation"] | {"retrieval": []}
    found = Measured(model, tokenizer, corpus.held, settings, None).all(answers, model.config.max_position_embeddings)
    write_results(file, {"measured": found, "answers": answers})
    return found, answers


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--variant", help="one of the config's variants, such as control, or several joined by +")
    parser.add_argument("--model", help="a folder, a Hub id or a .gguf file, in place of the config's")
    parser.add_argument("--documents", help="a folder of .txt files, in place of the config's")
    parser.add_argument("--tokens", type=int, help="to train on, in place of the config's: those of a run to compare")
    parser.add_argument("--out", type=new_folder, help="a folder, in place of the config's")
    parser.add_argument(
        "--minutes", type=minutes, help="of the whole run; the training ends in time for the evaluation"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in `out`")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a CPU, compared with expected.json")
    args = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    if args.smoke:
        from recipes.extend_context.smoke import main as smoke

        smoke()
        return
    config = read_config(args.config, args.variant)
    given = {key: getattr(args, key) for key in ("model", "documents", "tokens")}
    given["out"] = None if args.out is None else str(args.out)
    config = checked(config | {key: value for key, value in given.items() if value is not None})
    report = run(config, minutes=args.minutes, resume=args.resume, command=command_without_paths())
    shown = ("steps", "tokens", "seconds", "ratios")
    print(json.dumps({key: report[key] for key in shown}, indent=2))


if __name__ == "__main__":
    main()
