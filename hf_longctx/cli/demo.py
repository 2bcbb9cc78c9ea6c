"""The main job, end to end, on a real model small enough for two CPU cores: `make demo`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACT = "Note: the access code of the archive in Rotterdam is 48213. Remember it."
QUESTION = "What is the access code of the archive in Rotterdam?"


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Lengths in tokens; `window` stands in for the model's own 8,192, beyond which two cores would need an hour."""

    window: int
    perplexity: tuple[int, ...]
    n_targets: int
    passkey: tuple[int, ...]
    depths: tuple[float, ...]
    document: int


# The longest length is past the model's real window, where the stock model breaks.
FULL = _Sizes(
    window=512,
    perplexity=(1024, 4096, 12288),
    n_targets=256,
    passkey=(768, 1536),
    depths=(0.1, 0.5, 0.9),
    document=2000,
)
SHORT = _Sizes(
    window=256, perplexity=(512, 1024), n_targets=128, passkey=(384,), depths=(0.2, 0.9), document=600
)  # fmt: skip


def run(out: Path, *, short: bool = False, console: Console | None = None) -> None:
    """Measure the stock model against LM-Infinite, draw it, undo it, save the extended model, load it and ask it.

    Args:
        out: Folder for `summary.png`, the numbers of both tasks, and the extended model.
        short: Tiny lengths: shows that everything runs, not that it is any good.
        console: Where to print.

    Raises:
        ImportError: A package that figures or the chat template need is missing.
    """
    import transformers

    from ..evaluation.report.plots import MATPLOTLIB
    from ..hub import extend, load, locate
    from ..hub.resolve import EXAMPLE_MODEL
    from ..methods.lm_infinite import LMInfinite
    from ..text.tokens import CHAT_TEMPLATES
    from ..upstream.installing import check_packages

    check_packages([MATPLOTLIB, CHAT_TEMPLATES])  # the last minutes need them
    console, sizes, start = console or Console(), SHORT if short else FULL, time.perf_counter()
    # Bars of half a second each would drown the demo's own output.
    transformers.utils.logging.disable_progress_bar()
    console.rule("The model")
    checkpoint = locate(EXAMPLE_MODEL)
    model, tokenizer = load(checkpoint.location)
    model.config._name_or_path = checkpoint.source
    trained = model.config.max_position_embeddings
    where = f"{os.cpu_count()} CPU cores" if model.device.type == "cpu" else str(model.device)
    _say(console, f"{checkpoint.source}, trained to {trained:,} tokens; {model.dtype} on {where}.")
    _say(
        console,
        f"So that minutes are enough, a window of {sizes.window:,} tokens stands in for the model's {trained:,}: "
        f"LM-Infinite and truncation get {sizes.window:,}; the stock model reads all and works well up to {trained:,}.",
    )

    fluent, finding = LMInfinite(n_local=sizes.window), LMInfinite(n_local=sizes.window, top_k=5)
    console.rule("Perplexity: fluent at any length?")
    perplexity = _measure(
        model, tokenizer, console, out / "perplexity", task="ppl", method=fluent, lengths=sizes.perplexity,
        window=sizes.window, documents=1, n_targets=sizes.n_targets,
    )  # fmt: skip
    console.rule("Passkey: does it find what left the window?")
    passkey = _measure(
        model, tokenizer, console, out / "passkey", task="passkey", method=finding, lengths=sizes.passkey,
        window=sizes.window, depths=sizes.depths, trials=1,
    )  # fmt: skip
    picture = _draw(perplexity, passkey, sizes, trained, out / "summary.png")
    _say(console, f"Figure: {picture}")

    console.rule("Undo")
    if not _undo_is_exact(model, finding):
        raise RuntimeError("logits after apply and undo differ from those before: please report this.")
    _say(console, "Logits after apply and undo are bit-equal to those before.")

    console.rule("Save, load, ask")
    folder = extend(EXAMPLE_MODEL, finding, out / "extended", overwrite=True)
    _say(console, f"Saved with the method in config.json: {folder}")
    answer, n_tokens, back = _ask(folder, sizes.document)
    _say(console, f"A document of {n_tokens:,} tokens; {back:,} tokens before its end it says: {FACT}")
    _say(console, f"Q: {QUESTION}\nA: {answer}")
    console.rule(f"{time.perf_counter() - start:.0f} s")


def _measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, console: Console, out: Path, **what: Any
) -> dict[str, Any]:
    from ..evaluation.runner import evaluate

    # A demo shows what this code does now, not what an earlier run left; that stays until the new numbers are there.
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".measuring-", dir=out) as draft:
        found = evaluate(model, tokenizer, out=draft, console=console, command="hf-longctx demo", **what)
        for file in Path(draft).iterdir():
            os.replace(file, out / file.name)
    return found


def _draw(perplexity: dict[str, Any], passkey: dict[str, Any], sizes: _Sizes, trained: int, path: Path) -> Path:
    from ..evaluation.report import plots
    from ..evaluation.report.files import ResultFile
    from ..evaluation.report.measured import measured

    title = f"{perplexity['model']}; truncation and LM-Infinite with a window of {sizes.window:,} tokens"
    conditions = (
        f"{perplexity['hardware']}; left: last {sizes.n_targets} tokens of one document of the Python reference; "
        "right: one prompt a cell, LM-Infinite with top_k=5"
    )
    # The stock model's own limit; the emulated window is in the title.
    window = trained if trained < max(sizes.perplexity) else None
    (read,), (found,) = (measured([ResultFile("results.json", one)]) for one in (perplexity, passkey))
    curves = {name: read.curve(name) for name in read.configurations}
    grids = {name: found.grid(name) for name in found.configurations}
    figure = plots.summary_figure(curves, grids, window=window, title=title, subtitle=conditions)
    plots.save(figure, path)
    return path


def _undo_is_exact(model: PreTrainedModel, method: Any) -> bool:
    import torch

    ids = torch.arange(1000, 1064, device=model.device)[None]
    with torch.no_grad():
        before = model(ids).logits
        method.apply(model).undo()
        return torch.equal(before, model(ids).logits)


def _ask(folder: Path, length: int) -> tuple[str, int, int]:
    """The answer of the saved model, the tokens of its document, and how many of them follow the fact."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..text.corpora import load_text
    from ..text.tokens import prompt_inputs

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # float32: bfloat16 is many times slower on a CPU.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(load_text("python-docs"), verbose=False)["input_ids"][:length]
    at = int(0.3 * length)
    document = f"{tokenizer.decode(ids[:at])}\n\n{FACT}\n\n{tokenizer.decode(ids[at:])}"
    inputs = prompt_inputs(tokenizer, f"{document}\n\n{QUESTION}")
    read = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False, prefill_chunk_size=1024)
    return tokenizer.decode(output[0, read:], skip_special_tokens=True).strip(), read, length - at


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
