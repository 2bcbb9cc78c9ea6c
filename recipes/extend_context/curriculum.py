"""Dataset Decomposition from scratch, beside documents joined and cut into pieces of 8,192, on equal tokens.

    python -m recipes.extend_context.curriculum --documents data/documents --minutes 4 --out curriculum.json
    python -m recipes.extend_context.curriculum --smoke --out curriculum.json

A model of about 30M parameters is trained twice. `--minutes` is the time of the joined pieces; the other one gets
as many tokens, in its own time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_longctx.evaluation.results import environment, result_file, write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub.resolve import load_tokenizer
from hf_longctx.storage.files import check_file
from hf_longctx.training.curriculum import BatchSamplerMixin, BucketSampler, Decomposed, decompose
from hf_longctx.training.memory import TrainingMemory, TrainingMemoryMixin
from recipes.bars import missed
from recipes.benchmarks.reading import command_without_paths
from recipes.cards import one_card
from recipes.clock import Clock, ClockMixin, minutes
from recipes.extend_context.corpus import prepare
from recipes.extend_context.settings import DEFAULT, read_config
from recipes.extend_context.smoke import prepare as prepare_smoke
from recipes.outs import new_file

# the model, the smallest and the largest piece, and the tokens of a step
FULL: dict[str, Any] = {"hidden": 384, "layers": 8, "sizes": (256, 8192), "step": 131_072, "steps": 1_000}
TINY: dict[str, Any] = {"hidden": 32, "layers": 2, "sizes": (32, 256), "step": 512, "steps": 8}


class CurriculumTrainer(ClockMixin, BatchSamplerMixin, TrainingMemoryMixin, Trainer):
    """Trainer on the batches of a sampler, by a clock."""


def model_of(vocabulary: int, size: dict[str, Any]) -> Any:
    """A Llama of random weights, the same ones each time."""
    set_seed(0)
    hidden = size["hidden"]
    shape = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": size["layers"]}
    heads = {"num_attention_heads": 6 if hidden % 6 == 0 else 4, "tie_word_embeddings": True}
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    more = {"max_position_embeddings": size["sizes"][1], "rope_parameters": rope, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **heads, **more))


def train(data: Decomposed, model: Any, size: dict[str, Any], clock: Clock, folder: Path) -> dict[str, Any]:
    """Train until the clock ends; steps and seconds."""
    cuda = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=not cuda,
        max_steps=clock.steps,
        learning_rate=2e-3,
        adam_beta2=0.95,
        warmup_steps=min(20, clock.steps // 4),
        bf16=cuda,
        save_strategy="no",
        logging_steps=20,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = CurriculumTrainer(
        model=model,
        args=one_card(args),
        clock=clock,
        memory=TrainingMemory(tile=None),
        batch_sampler=BucketSampler(data.sizes, size["step"], curriculum="uniform"),
        train_dataset=data,
        data_collator=data.collate,
    )
    trainer.train()
    return {"steps": trainer.state.global_step, "seconds": clock.passed}


@torch.no_grad()
def losses(model: Any, data: Decomposed, most: int) -> dict[str, float]:
    """The loss of held-back pieces of each size, of at most `most` tokens a size."""
    found, _ = {}, model.eval()
    for size in sorted(set(data.sizes)):
        numbers = [number for number, one in enumerate(data.sizes) if one == size][: max(most // size, 1)]
        rows, total = max(max(data.sizes) // size, 1), 0.0
        for at in range(0, len(numbers), rows):
            some = [data[number] for number in numbers[at : at + rows]]
            batch = {name: one.to(model.device) for name, one in data.collate(some).items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
                total += float(model(**batch).loss) * len(some)
        found[str(size)] = total / len(numbers)
    return found


def run(config: dict[str, Any], size: dict[str, Any], minutes: float | None, folder: Path, out: Path) -> dict[str, Any]:
    """Both trainings, and what they are worth; `out` has what is known after each."""
    check_file(out, "--out")
    tokenizer = load_tokenizer(config["model"])
    corpus = prepare(config, tokenizer)
    shortest, longest = size["sizes"]
    documents, held = list(corpus.training.values()), list(corpus.held.values())
    end = torch.tensor([tokenizer.eos_token_id], dtype=torch.int32)
    joined = torch.cat([part for ids in documents for part in (ids, end)])
    pieces = decompose(held, shortest=shortest, longest=longest)
    arms: dict[str, tuple[list[Tensor], int, str]] = {
        "joined": ([joined], longest, "longest"),
        "equal draw": (documents, shortest, "equal"),
    }
    found: dict[str, Any] = {"documents": corpus.report}
    steps, seconds = size["steps"], None if minutes is None else 60 * minutes
    for name, (texts, smallest, draw) in arms.items():
        data = decompose(texts, shortest=smallest, longest=longest, draw=draw)
        model = model_of(len(tokenizer), size)
        found["parameters"] = model.num_parameters()
        done = train(data, model, size, Clock(steps, seconds, folder / "seconds.json"), folder)
        # the other one gets as many tokens, in its own time
        steps, seconds = done["steps"], None
        tokens = {"tokens": steps * size["step"]}
        found[name] = done | tokens | {"pieces": data.report(), "held-back loss": losses(model, pieces, 32 * longest)}
        write_results(out, found | environment())
    ours, other = found["equal draw"], found["joined"]
    mean = [sum(one["held-back loss"].values()) / len(one["held-back loss"]) for one in (ours, other)]
    found["seconds over joined"] = ours["seconds"] / other["seconds"]
    found["mean held-back loss over joined"] = mean[0] / mean[1]
    label = f"Llama of {found['parameters'] / 1e6:.0f}M parameters, from random weights"
    command = command_without_paths()
    found = result_file(rows(found), model=label, command=command, heading="equal draw", **found)
    write_results(out, found)
    return found


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The result beside its bars: time, and held-back loss of every size."""
    ours, other = found["equal draw"], found["joined"]
    seconds, mean = found["seconds over joined"], found["mean held-back loss over joined"]
    equal = f"{other['tokens']:,} tokens each"
    about = {
        name: {key: one[key] for key in ("steps", "seconds", "pieces")}
        for name, one in (("equal draw", ours), ("joined", other))
    }
    return [
        row(f"{equal}: seconds of training, over joined pieces'", seconds, "", bar="<= 0.75",
            why=missed(seconds, "<= 0.75", "attention is a small part of a step"), detail=about),
        row(f"{equal}: loss of held-back pieces, mean over sizes, over joined pieces'", mean, "", bar="<= 1.005",
            why=missed(mean, "<= 1.005", "long pieces are seen seldom")),
        *(
            row(f"loss of held-back pieces of {int(size):,} tokens", loss, "nats a token",
                beside={"joined": other["held-back loss"][size]})
            for size, loss in ours["held-back loss"].items()
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="whose tokenizer is taken, in place of the one in config.yaml")
    parser.add_argument("--documents", help="a folder of .txt files, in place of the one in config.yaml")
    parser.add_argument("--minutes", type=minutes, default=4.0)
    parser.add_argument("--out", type=new_file, default="curriculum.json")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, on a CPU")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        if args.smoke:
            found = run(prepare_smoke(folder), TINY, None, folder, args.out)
        else:
            config = read_config(DEFAULT)
            given = {"documents": args.documents, "model": args.model}
            config |= {key: value for key, value in given.items() if value is not None}
            found = run(config, FULL, args.minutes, folder, args.out)
    print(json.dumps({key: one for key, one in found.items() if key != "documents"}, indent=2))


if __name__ == "__main__":
    main()
