"""What the commands share: their common options, and how a model, a method and a prompt are made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..storage.files import claimed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..method import LongContextMethod
    from ..registry import Recorded
    from ..streaming.reader import Reader

Model = Annotated[
    str, typer.Argument(help="A folder, a Hub id, a .gguf file, or smollm2-135m-instruct.", show_default=False)
]
MethodName = Annotated[str | None, typer.Option("--method", help="A name from `hf-longctx methods`.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (float32 on a CPU).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default the accelerator if there is one.")]
ChunkSize = Annotated[int | None, typer.Option(min=1, help="Prefill chunk size, in tokens.")]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")]
Sample = Annotated[bool, typer.Option("--sample", help="Sample as the model's settings say; else greedy.")]
screen = Console()  # of results; `notes` are for everything else


def chosen_of(name: str | None, settings: list[str] | None) -> Recorded | None:
    """The method or procedure that `--method` and `--set` name."""
    if name is None:
        if settings:
            raise ValueError(f"--set {settings[0]}: settings belong to a method. Add --method NAME.")
        return None
    from ..registry import entries, parse, unknown
    from ..settings import read_settings, unknown_setting

    # what is misspelt is told before torch is imported
    known = entries()
    if name not in known:
        raise ValueError(unknown(name, known).replace("name=", "--method ", 1))
    wrong = unknown_setting(name, list(known[name]["settings"]), read_settings(settings or []))
    if wrong:
        raise ValueError(wrong)
    return parse(name, settings or [])


def method_of(
    name: str | None, settings: list[str] | None, instead: str = "Take `hf-longctx generate`"
) -> LongContextMethod | None:
    """As `chosen_of`, for a command that changes the model. For a procedure, the error says what to do `instead`."""
    chosen = chosen_of(name, settings)
    if chosen is None:
        return None
    from ..method import LongContextMethod

    if isinstance(chosen, LongContextMethod):
        return chosen
    raise ValueError(f"--method {name} is a way to generate, not a change of the model. {instead}.")


@contextmanager
def running(chosen: Recorded | None, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """`chosen.running(model)`; without one, no argument for `generate`."""
    with nullcontext({}) if chosen is None else chosen.running(model) as extra:
        yield extra


def load_model(model: str, dtype: str, device: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, which are quoted by the name that the user gave."""
    from ..hub import load, locate
    from ..hub.resolve import usable_device

    if device is not None:
        usable_device(device)  # before a download
    checkpoint = locate(model)
    loaded, tokenizer = load(checkpoint.location, dtype=dtype_of(dtype), device=device)
    # results are quoted with this name; a folder of the cache would say nothing to their reader
    loaded.config._name_or_path = checkpoint.source
    return loaded, tokenizer


def load_without_tokenizer(model: str, dtype: str, device: str | None) -> PreTrainedModel:
    """The model alone, for commands that read no text: checkpoints of a training often have no tokenizer."""
    from ..hub.resolve import load_model as load

    return load(model, dtype=dtype_of(dtype), device=device)


def dtype_of(name: str) -> Any:
    """The `torch.dtype` that --dtype names, or "auto"."""
    import torch

    known = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"--dtype {name}: expected one of {', '.join(known)}.")
    return known[name]


def reader_on(model: PreTrainedModel, method: LongContextMethod | None, chunk: int | None) -> Reader:
    """A reader on a model with `method`, else the one it was saved with, else LM-Infinite at its trained length."""
    from ..methods.lm_infinite import LMInfinite
    from ..patch import applied
    from ..streaming.reader import stream

    if method is None and not applied(model):
        method = LMInfinite()
        notes().print(f"no --method given: {method!r}", style="dim", highlight=False, markup=False)
    if method is not None:
        method.apply(model)
    return stream(model) if chunk is None else stream(model, chunk=chunk)


def sampling(sample: bool) -> dict[str, Any]:
    """Arguments of `generate` for --sample, and for greedy decoding without it."""
    return {"do_sample": True} if sample else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def document_pieces(
    option: str, prompt: str | None, document: str | None, question: str | None
) -> tuple[Iterator[str], str]:
    """The document, which is read as its pieces are taken, and the question about it. `option` needs both."""
    if document is None or prompt is not None:
        raise ValueError(
            f"{option} reads a document: give --document FILE (or - for standard input) and --question TEXT."
        )
    if not (question or "").strip():
        raise ValueError("--document needs a --question that is not empty.")
    from ..text.files import read_pieces

    return read_pieces(document), str(question)


def prompt_text(prompt: str | None, document: str | None, question: str | None) -> str:
    """The prompt, or the document with the question after it."""
    if (prompt is None) == (document is None):
        raise ValueError("Give either --prompt TEXT, or --document FILE with --question TEXT.")
    if document is None:
        if question is not None:
            raise ValueError(
                "--question belongs to a --document. Put the whole text into --prompt, or name a document."
            )
        if not (prompt or "").strip():
            raise ValueError("--prompt is empty: there is nothing to answer. Give it some text.")
        return str(prompt)
    if not (question or "").strip():
        raise ValueError("--document needs a --question that is not empty.")
    from ..text.corpora import load_text

    return f"{load_text(document).strip()}\n\n{question}"


def numbers(option: str, text: str, *, whole: bool = False) -> list[float]:
    """The numbers of an option that takes several."""
    try:
        return [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"--{option} {text}: expected {kind} separated by commas.") from None


# every option of a command that takes a path; a test compares them
PLACES = {"--include", "--out", "--prefix-cache", "--questions", "--results", "--scores", "--to", "--token-file"}


def place_without_a_name(words: Sequence[str]) -> str | None:
    """The option of a command line whose path is empty, which pathlib takes for the current folder."""
    for before, word in zip(("", *words), words, strict=False):
        name, equals, value = word.partition("=")
        if (before in PLACES and not word) or (name in PLACES and equals and not value):
            return before if not word else name
    return None


@contextmanager
def resumes(out: Path, name: str = "--out", *, file: bool = False) -> Iterator[None]:
    """A run that is the only one to write there, claimed before a model is loaded, and that its command continues."""
    with claimed(out, name, file=file):
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted. What is finished is kept in {out}: the same command continues from there."
            ) from None


@contextmanager
def steps_told() -> Iterator[None]:
    """What the library logs of its steps, one line each on stderr: a long run is seen to be at work."""
    handler, logger = logging.StreamHandler(), logging.getLogger("hf_longctx.hub")
    handler.addFilter(lambda record: record.levelno == logging.INFO)  # warnings are shown in any case
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def notes() -> Console:
    """Where progress and remarks go: stderr."""
    return Console(stderr=True)


def plain(text: str) -> None:
    """Print a result that is to be copied: whole paths, no markup."""
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print an error. Soft-wrapped: one line in a log, however wide."""
    notes().print(f"Error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
