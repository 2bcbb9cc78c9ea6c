"""The longest step of stock Trainer, of TRL's SFTTrainer and of accelerate's context parallelism, beside `longest`.

python -m recipes.far.others --card 77       # Llama 1.24B, all bf16; accelerate's line takes two GPUs, TRL's needs trl
python -m recipes.far.others --lines "stock Trainer"
python -m recipes.far.others --lines "stock Trainer" --near 44k     # goes on where an earlier search was stopped
python -m recipes.far.others --smoke         # tiny, on a CPU, by stock Trainer alone

Peaks of two short steps, which grow linearly with tokens, say where a longer one should stop to fit. Where that is much
farther, steps of four times the tokens come first: what short steps do not show may grow later. Then it is tried longer
or shorter by a thirtieth, until one fits and the next does not: both are in the row.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_longctx.evaluation.rows import row
from hf_longctx.training.processes import is_first
from hf_longctx.upstream.checkpointing import enable_checkpointing
from hf_longctx.upstream.installing import Package, check_packages
from recipes import by_trl
from recipes.benchmarks.reading import K, lengths, results_of
from recipes.benchmarks.saving import Saved
from recipes.benchmarks.sequence_parallel.rival import Rival
from recipes.benchmarks.sequence_parallel.world import World
from recipes.outs import RESULT_OPTION, result_path

from .beside import STOCK, TRLS_OWN, measure
from .launching import answer, last_line
from .settings import MODELS
from .steps import GIB, no_more_than

ACCELERATE = "accelerate's context parallelism"
CARDS = {STOCK: 1, TRLS_OWN: 1, ACCELERATE: 2}
SHORT = 8 * K, 16 * K  # steps that say how memory grows
UNIT = 4 * K  # lengths are multiples of it
STEP = 30  # the next try is so many times shorter or longer by one part
FAR = 4  # a step of more than so many times the tokens of the longest that did fit is not tried: it is not known enough
TRIES = 12
Found = dict[str, Any]


def reach(
    attempt: Callable[[int], Found],
    card: float,
    short: tuple[int, int] = SHORT,
    unit: int = UNIT,
    near: int | None = None,
) -> list[Found]:
    """What each try found, in the order they were made; `tokens` is their length, and those with `seconds` did fit.

    Args:
        attempt: Runs one step: its `seconds` and `peak_bytes`, or why there is none as `out_of_memory` or `failed`.
        card: GiB of a GPU.
        short: Lengths of the steps that say how memory grows.
        unit: Lengths are multiples of it.
        near: About where the end is, from an earlier search that was stopped: tried first of the long ones.
    """
    found = [_tried(attempt, tokens) for tokens in short]
    if not all("seconds" in one for one in found) or not found[0]["peak_bytes"]:  # without a GPU nothing is counted
        return found
    less, more = found  # the two longest that fit, until one does not
    while len(found) < TRIES:
        aim = _limit(less, more, card) if near is None else near
        most = FAR * more["tokens"] if near is None else near
        tokens = max(min(aim, most) // unit * unit, unit)
        found.append(_tried(attempt, tokens))
        if aim <= most or "seconds" not in found[-1]:
            break
        less, more = more, found[-1]
    while len(found) < TRIES and "failed" not in found[-1]:
        hop = max(tokens // STEP // unit * unit, unit)
        tokens += hop if "seconds" in found[-1] else -hop
        if tokens < unit or any(one["tokens"] == tokens for one in found):
            break
        found.append(_tried(attempt, tokens))
    return found


def _limit(less: Found, more: Found, card: float) -> int:
    """Tokens at which the line through two steps reaches the card, less what the allocator cannot use."""
    a_token = (more["peak_bytes"] - less["peak_bytes"]) / (more["tokens"] - less["tokens"])
    if a_token <= 0:
        return sys.maxsize
    return int(more["tokens"] + (card * GIB * (1 - 1 / STEP) - more["peak_bytes"]) / a_token)


def _tried(attempt: Callable[[int], Found], tokens: int) -> Found:
    found = attempt(tokens) | {"tokens": tokens}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def launch(line: str, model: str, card: float | None, tokens: int) -> Found:
    """What the processes of one step have measured, or why there is nothing."""
    words = ["recipes.far.others", "--line", line, "--of", model, "--tokens", str(tokens)]
    found, errors, _ = answer([*words, *(["--card", str(card)] if card else [])], CARDS[line])
    if found is not None:
        return found
    said = [text for text in errors.splitlines() if "OutOfMemoryError" in text]
    return {"out_of_memory": said[0].strip()} if said else {"failed": last_line(errors)}


def one_step(line: str, model: str, tokens: int) -> Found:
    """Seconds and bytes at the peak of one step without a warm-up, in this process or processes."""
    if line == ACCELERATE:
        return by_accelerate(model, tokens)
    found = measure(line, model, tokens, steps=1, warm_up=0, bf16=True)
    return {"seconds": found["seconds"][0], "peak_bytes": found["peak_bytes"]}


def by_accelerate(name: str, tokens: int) -> Found:
    """The same by accelerate's context parallelism under FSDP2, with the stock model's own loss."""
    world = World.join(tiny=not torch.cuda.is_available())
    torch.manual_seed(0)
    with world.device:
        model: Any = AutoModelForCausalLM.from_config(MODELS[name], dtype=world.dtype).train()
    enable_checkpointing(model, {"use_reentrant": False})
    rival = Rival(model, world)
    generator = torch.Generator().manual_seed(1)  # the same on every rank
    ids = torch.randint(3, MODELS[name].vocab_size, (1, tokens), generator=generator).to(world.device)
    world.wait()
    start = time.perf_counter()
    # stock models compute a loss where there are labels, of those that are shifted if there are any
    with rival.shared({"input_ids": ids, "labels": ids}, labels=ids) as given:
        loss = rival.model(**given).loss
        loss.backward()
    rival.optimizer.step()
    rival.optimizer.zero_grad()
    world.wait()
    peak = torch.cuda.max_memory_allocated() if world.gpu else 0
    seconds, most = world.worst(time.perf_counter() - start, peak)
    if not torch.isfinite(loss):
        raise RuntimeError(f"{ACCELERATE}, {tokens} tokens: the loss is {loss.item()}")
    return {"seconds": seconds, "peak_bytes": int(most)}


def measured(
    lines: Sequence[str],
    model: str,
    card: float,
    short: tuple[int, int] = SHORT,
    unit: int = UNIT,
    near: int | None = None,
) -> Iterator[Found]:
    """A row for each line: tokens of the longest step that fits."""
    for line in lines:
        attempt: Callable[[int], Found] = functools.partial(launch, line, model, card)
        tries = reach(attempt, card, short, unit, near)
        fits = [one for one in tries if "seconds" in one]
        fails = [one for one in tries if "seconds" not in one]
        cards = f"{CARDS[line]} card{'s' * (CARDS[line] > 1)}"
        what = f"Llama {model}, all bf16, the longest step of {line}, {cards} of {card:g} GiB"
        if not fits:
            yield row(what, None, "tokens", why=_why(tries[0]), detail={"tries": tries})
            continue
        best = max(fits, key=lambda one: one["tokens"])
        too_long = min((one["tokens"] for one in fails if "out_of_memory" in one), default=None)
        beside = {"GiB": best["peak_bytes"] / GIB, "seconds": best["seconds"], "out of memory at": too_long}
        why = next((_why(one) for one in fails if "failed" in one), None)
        yield row(what, best["tokens"], "tokens", beside=beside, why=why, detail={"tries": tries})


def _why(found: Found) -> str:
    return str(found.get("out_of_memory") or found.get("failed"))


def packages(words: Sequence[str]) -> Sequence[Package]:
    """Those that the command needs with these arguments."""
    return by_trl.needed_by(TRLS_OWN, parser().parse_args(words))


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--lines", nargs="+", choices=tuple(CARDS), default=list(CARDS))
    found.add_argument("--card", type=float, default=77.0, help="GiB that torch may have of a card (77: an H100's)")
    found.add_argument(
        "--near", type=lengths, help="about where the end of one line is, as an earlier search has seen: 440k"
    )
    found.add_argument("--smoke", action="store_true", help="a tiny model, on a CPU, by stock Trainer alone")
    found.add_argument("--line", help=argparse.SUPPRESS)
    found.add_argument("--of", help=argparse.SUPPRESS)
    found.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    found.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    found.add_argument("--out", **RESULT_OPTION)
    return found


def step_of(args: argparse.Namespace) -> None:
    """One step, whose figures the first process prints as a line of JSON."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    no_more_than(args.card)
    try:
        found = one_step(args.line, args.of, args.tokens)
    except torch.OutOfMemoryError as error:
        print(json.dumps({"out_of_memory": str(error).splitlines()[0]}), flush=True)
        os._exit(1)  # another rank may wait in an exchange: the launcher ends it
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
        raise
    if is_first():
        print(json.dumps(found), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Try the lines, and write far_others.json."""
    args = parser().parse_args(arguments)
    if args.line:
        step_of(args)
        return
    check_packages(by_trl.needed_by(TRLS_OWN, args))
    name, lines = ("tiny", [STOCK]) if args.smoke else ("1.24B", args.lines)
    short, unit = ((256, 512), 256) if args.smoke else (SHORT, UNIT)
    near = None if args.near is None else args.near[0]
    if near is not None and (len(args.near) > 1 or len(lines) > 1 or near <= short[1]):
        raise SystemExit(
            f"--near {','.join(map(str, args.near))} with {len(lines)} lines: expected one length of more than "
            f"{short[1]:,} tokens, and one of --lines, whose end it is near."
        )
    file = result_path(results_of(args), "far_others")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # of one card or two, as each row says: lines of different calls stand in one file
    saved = Saved(file, f"Llama {name}, random weights", device, args.commit, heading="its longest step")
    saved.add(measured(lines, name, args.card, short, unit, near))


if __name__ == "__main__":
    main()
