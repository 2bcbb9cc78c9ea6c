"""One long document a step, through Trainer: tokens/s and memory of the ladder beside stock Trainer and TRL.

python -m recipes.far.beside               # SmolLM2-135M, 64k tokens, one GPU; TRL's line needs trl and datasets
python -m recipes.far.beside --smoke       # tiny, on a CPU
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_longctx import TrainingMemory
from hf_longctx.evaluation.rows import row
from hf_longctx.training.memory import TrainingMemoryMixin
from hf_longctx.upstream.installing import Package, check_packages
from recipes import by_trl
from recipes.bars import missed
from recipes.benchmarks.reading import K, finish, lengths
from recipes.cards import one_card
from recipes.outs import RESULT_OPTION

from .launching import answer, last_line
from .settings import MODELS
from .steps import GIB

WARM_UP = 1  # steps that are not counted
STOCK, TRL, TRLS_OWN = "stock Trainer", "TRL's SFTTrainer, offload", "TRL's SFTTrainer, its own offload"
# an MLP as narrow as SmolLM2's is never the peak while attention is kept: no tiles, which cost launches
FAST = "TrainingMemory(tile=None, remat='attention', fused_norms=True)"
SMALL = "TrainingMemory(tile=8192, remat='attention', offload=True, fused_norms=True), offload"
MEMORY: dict[str, dict[str, Any]] = {
    FAST: {"tile": None, "remat": "attention", "fused_norms": True},
    SMALL: {"tile": 8192, "remat": "attention", "offload": True, "fused_norms": True},
}
OFFLOAD = (SMALL, TRL)  # by transformers: hidden states on the host
# which of ours over which other: tokens/s at least, memory at most
BARS = {(FAST, STOCK): (">= 1.15", "<= 0.333"), (SMALL, TRL): (">= 1.1", "<= 0.8")}


class FarTrainer(TrainingMemoryMixin, Trainer):
    """Trainer on the ladder."""


class Documents(Dataset[dict[str, Any]]):
    """One random document of so many tokens for each step, all of whose tokens are targets."""

    def __init__(self, tokens: int, steps: int, vocabulary: int) -> None:
        seeded = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, vocabulary, (steps, tokens), generator=seeded)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self.ids[number], "labels": self.ids[number]}


class Times(TrainerCallback):
    """When the first step began, and each ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.marks.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the card, and look at the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def measure(
    line: str, model_name: str, tokens: int, steps: int, warm_up: int = WARM_UP, bf16: bool = False
) -> dict[str, Any]:
    """Seconds of each step after the warm-up, and bytes at the peak, of one line in this process.

    With `bf16` on a GPU weights and optimizer states are bf16 too, without autocast.
    """
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if bf16 and cuda else torch.float32
    model: Any = AutoModelForCausalLM.from_config(MODELS[model_name], dtype=dtype)
    data, times = Documents(tokens, warm_up + steps, model.config.vocab_size), Times()
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "max_steps": warm_up + steps,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False}
        | ({"offload": True} if line in OFFLOAD and cuda else {}),
        "bf16": cuda and not bf16,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-5,
        "dataloader_pin_memory": cuda,
    }
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(line, model, data, settings | {"output_dir": out})
        trainer.add_callback(times)
        trainer.train()
    logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    seconds = [after - before for before, after in pairwise(times.marks)][warm_up:]
    return {"seconds": seconds, "peak_bytes": peak, "losses": logs}


def trainer_of(line: str, model: Any, data: Documents, settings: dict[str, Any]) -> Any:
    """The Trainer of a line, around the same model and documents."""
    if line not in (TRL, TRLS_OWN):
        args = one_card(TrainingArguments(**settings))
        if line == STOCK:
            return Trainer(model=model, args=args, train_dataset=data)
        memory = TrainingMemory(**MEMORY[line])
        return FarTrainer(model=model, args=args, train_dataset=data, memory=memory)
    by_trl.check_trl()
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer

    # all else is TRL's default: a chunked loss, among others
    table = Table.from_dict({"input_ids": data.ids.tolist()})
    own = {"activation_offloading": True} if line == TRLS_OWN and torch.cuda.is_available() else {}
    config = one_card(SFTConfig(**settings, **own, max_length=None))
    return SFTTrainer(model=model, args=config, train_dataset=table, processing_class=small_tokenizer())


def small_tokenizer() -> Any:
    """One that TRL asks for an end token only: the documents are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<end>": 0, "<none>": 1}, unk_token="<none>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<none>")


def measured(lines: list[str], model: str, tokens: int, steps: int) -> Iterator[dict[str, Any]]:
    """A row for each line, then ours over the others. Each line runs in a process of its own."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        words = ["--line", line, "--of", model, "--tokens", str(tokens), "--steps", str(steps)]
        one, errors, _ = answer(["recipes.far.beside", *words], 1)
        what = f"{model}, one document of {tokens // K}k tokens a step: {line}"
        if one is None:
            yield row(f"{what}, tokens/s", None, "tokens/s", why=last_line(errors))
            continue
        found[line] = one
        one["tokens/s"] = tokens * len(one["seconds"]) / sum(one["seconds"])
        yield row(f"{what}, tokens/s", one["tokens/s"], "tokens/s", beside={"GiB": one["peak_bytes"] / GIB}, detail=one)
    slower = "its step is bound by launches, or copies to the host are not hidden"
    larger = "at the peak stand one layer's own tensors, which both hold"
    for (line, other), (speed, memory) in BARS.items():
        if line in found and other in found:
            of = f"{model}, one document of {tokens // K}k tokens a step: {line} over {other}"
            barred = tokens == 64 * K
            ours, theirs = found[line], found[other]
            ratio, bar = ours["tokens/s"] / theirs["tokens/s"], speed if barred else None
            yield row(f"{of}, tokens/s", ratio, "", bar=bar, why=missed(ratio, bar, slower))
            if theirs["peak_bytes"]:
                ratio, bar = ours["peak_bytes"] / theirs["peak_bytes"], memory if barred else None
                yield row(f"{of}, memory", ratio, "", bar=bar, why=missed(ratio, bar, larger))


def packages(words: Sequence[str]) -> Sequence[Package]:
    """Those that the command needs with these arguments."""
    return by_trl.needed_by(TRL, parser().parse_args(words))


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--tokens", type=lengths, default=[64 * K], help="of a document (64k)")
    found.add_argument("--steps", type=int, default=5, help="that are timed, after one that is not")
    found.add_argument("--lines", nargs="+", choices=(STOCK, FAST, SMALL, TRL), default=[STOCK, FAST, SMALL, TRL])
    found.add_argument("--smoke", action="store_true", help="a tiny model, 1k tokens, without TRL")
    found.add_argument("--line", help=argparse.SUPPRESS)
    found.add_argument("--of", help=argparse.SUPPRESS)
    found.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    found.add_argument("--out", **RESULT_OPTION)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure the lines, and write far_beside.json."""
    args = parser().parse_args(arguments)
    if args.line:
        print(json.dumps(measure(args.line, args.of, args.tokens[0], args.steps)), flush=True)
        return
    check_packages(by_trl.needed_by(TRL, args))
    name, tokens, lines = ("tiny", K, [STOCK, FAST]) if args.smoke else ("SmolLM2-135M", args.tokens[0], args.lines)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    label = f"{name}, random weights, fp32 under bf16 autocast" if device == "cuda" else f"{name}, random weights"
    rows = measured(lines, name, tokens, 1 if args.smoke else args.steps)
    finish(SimpleNamespace(device=device), rows, args, "far_beside", label=label)


if __name__ == "__main__":
    main()
