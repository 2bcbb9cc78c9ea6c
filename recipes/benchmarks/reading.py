"""Shared by the reading benchmarks: arguments, the model, the texts cut into spans, ratios to the stock model."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx.console.units import parse_lengths
from hf_longctx.evaluation.perplexity import LengthScore
from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.hub import load
from hf_longctx.storage.files import check_file
from hf_longctx.text.corpora import load_text
from hf_longctx.upstream.caches import given_cache
from recipes.outs import RESULT, RESULT_OPTION, result_path

K = 1024
TRAINED = 8 * K  # of SmolLM2
RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of every reading benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=Path, help="folder of .txt files (recipes.benchmarks.documents)")
    parser.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    parser.add_argument("--out", **RESULT_OPTION)
    return parser


def rehearsal(folder: Path) -> tuple[str, Path]:
    """A tiny model and a text in a folder: where they are, for a rehearsal."""
    from recipes.extend_context.smoke import write_model

    text = load_text("python-docs")
    (folder / "text.txt").write_text(text[:100_000], encoding="utf-8")
    write_model(folder / "model", [text[:20_000]])
    return str(folder / "model"), folder


def check_parts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where several parts would write one result file, each over that of the part before."""
    if args.out is not None and args.out.suffix == RESULT and len(args.parts) > 1:
        parser.error(
            f"--out {args.out} is one file, and each of the {len(args.parts)} parts writes its own: give a folder, or "
            f"one part"
        )


def lengths(text: str) -> list[int]:
    """A list of lengths as `hf-longctx` takes it: 4096,8k,1M."""
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def subject(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Tensor]]:
    """The model (bf16 on a GPU, fp32 elsewhere), its tokenizer, and every document's token ids."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(args.model, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    paths = sorted(args.documents.glob("*.txt")) if args.documents else []
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    return model, tokenizer, {name: tokenizer(text, return_tensors="pt").input_ids[0] for name, text in texts.items()}


def results_of(args: argparse.Namespace) -> Path:
    """Where a command writes: `--out`, or results/; a trial, `--smoke` or `--tiny`, into a new folder that it names."""
    if args.out is not None:
        return Path(args.out)
    if not (getattr(args, "smoke", False) or getattr(args, "tiny", False)):
        return RESULTS
    folder = Path(tempfile.mkdtemp(prefix="trial-"))
    print(f"This is a trial: its figures are in {folder}, not among the results.", flush=True)
    return folder


def finish(
    model: Any,
    rows: Iterable[dict[str, Any]],
    args: argparse.Namespace,
    name: str,
    label: str | None = None,
    **more: Any,
) -> None:
    """Print every row as it comes, and write the result file `name` when all are there.

    Until then they are in NAME.json.partial beside it: an interrupted run leaves those, and an earlier run's file.
    """
    label = label or f"SmolLM2-135M-Instruct (Q4_1, dequantised), {str(model.dtype).removeprefix('torch.')}"
    file = result_path(results_of(args), name)
    partial = file.with_name(f"{file.name}.partial")
    check_file(file)
    done: list[dict[str, Any]] = []
    for found in rows:
        print(found["what"], found["value"], found["bar"], found["holds"], found["beside"], flush=True)
        done.append(found)
        data = result_file(done, model=label, device=model.device, **more) | {"command": command_without_paths()}
        data |= {"commit": args.commit} if args.commit else {}
        write_results(partial, data)
    if done:
        partial.replace(file)


def command_without_paths(hidden: Iterable[str] = ()) -> str:
    """The command without the paths of texts, model and results on one machine, and without `hidden` options.

    Of absolute paths that other options have, the names stay.
    """
    hidden = ("--model", "--commit", "--out", *hidden)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    started = ["torchrun", "--nproc_per_node", os.environ["WORLD_SIZE"]] if launched else ["python"]
    parts = [*started, "-m", module_of(sys.argv[0])]
    skip = False
    for word in sys.argv[1:]:
        name = word.partition("=")[0]
        if not skip and name not in hidden:
            parts.append("DOCS" if parts[-1] == "--documents" else _named(word))
        skip = not skip and word in hidden
    return shlex.join(parts)


def _named(word: str) -> str:
    """A word of a command, of an absolute path its name alone."""
    option, given, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{given}{Path(value).name}" if Path(value).is_absolute() else word


def module_of(file: str) -> str:
    """The module that a file of recipes/ is, as `python -m` takes it."""
    parts = Path(file).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__main__" else parts
    return ".".join(parts[parts.index("recipes") :]) if "recipes" in parts else f"recipes.benchmarks.{parts[-1]}"


def spans(documents: dict[str, Tensor], length: int, most: int = 5) -> dict[str, Tensor]:
    """Up to `most` non-overlapping spans of `length` tokens from every text, from its start on."""
    return {
        f"{name} {i}": ids[i * length : (i + 1) * length]
        for name, ids in documents.items()
        for i in range(min(len(ids) // length, most))
    }


def ratios(texts: dict[str, Tensor], nll: Iterable[float], stock: Iterable[float]) -> dict[str, float]:
    """Each document's perplexity over the stock model's."""
    return {name: float(torch.tensor(a - b).exp()) for name, a, b in zip(texts, nll, stock, strict=True)}


def nll_detail(texts: dict[str, Tensor], score: LengthScore, stock: LengthScore) -> dict[str, Any]:
    """The raw samples of a ratio."""
    samples = {"nll": list(score.nll), "nll of stock": list(stock.nll)}
    return {"documents": list(texts), **samples, "targets": score.n_targets}


@torch.no_grad()
def cache_bytes(model: Any, ids: Tensor, chunk: int = 32 * K) -> int:
    """The bytes of the cache after reading a text."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for piece in ids[None].split(chunk, dim=1):
        model(piece.to(model.device), **given_cache(model, cache), use_cache=True, logits_to_keep=1)
    return sum(layer.nbytes() for layer in cache.layers)
