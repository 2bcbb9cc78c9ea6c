"""`hf-longctx ask`: one document, many questions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console.progress import Progress
from ..storage.answers import AnswerFile
from ..storage.files import check_folder
from .options import (
    ChunkSize,
    Device,
    Dtype,
    MethodName,
    Model,
    Sample,
    Settings,
    load_model,
    method_of,
    notes,
    resumes,
    sampling,
)

if TYPE_CHECKING:
    pass


def ask(
    model: Model,
    document: Annotated[str, typer.Option(help="A text file, -, or python-docs.", show_default=False)],
    questions: Annotated[Path, typer.Option(help="A text file, one question per line.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File for answers, JSON objects in lines; the same command adds those missing.")
    ] = None,
    prefix_cache: Annotated[Path | None, typer.Option(help="Folder that keeps what was read for next time.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    method: MethodName = None,
    settings: Settings = None,
    prefill_chunk_size: ChunkSize = None,
    sample: Sample = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Answer many questions about a document that is read, and kept in memory, once."""
    chosen = method_of(method, settings)
    asked = _lines(questions)
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"--out {out}: expected a file in a folder that exists.")
    if prefix_cache is not None and prefix_cache.exists() and not prefix_cache.is_dir():
        raise ValueError(f"--prefix-cache {prefix_cache}: expected a folder, and it is a file.")
    from ..sharing.model import check_method
    from ..text.files import read_pieces

    if chosen is not None:
        check_method(chosen, "Leave --method out, or ask with `hf-longctx generate`")  # before the model is loaded
    if prefix_cache is not None:
        check_folder(prefix_cache, "--prefix-cache")
    with nullcontext() if out is None else resumes(out, file=True):
        kept = None if out is None else AnswerFile(out)
        pieces = read_pieces(document)
        loaded, tokenizer = load_model(model, dtype, device)
        if chosen is not None:
            chosen.apply(loaded)
        _answer(
            loaded, tokenizer, pieces, asked, kept, batch_size=batch_size, prefix_cache=prefix_cache,
            chunk=prefill_chunk_size, max_new_tokens=max_new_tokens, **sampling(sample),
        )  # fmt: skip


def _answer(
    model: Any, tokenizer: Any, document: Iterable[str], asked: list[str], kept: AnswerFile | None, **how: Any
) -> None:
    """Print the answers as they come, or put those that are missing into a file."""
    from ..anatomy import find_decoder
    from ..patch import applied
    from ..sharing.model import check, check_method
    from ..sharing.questions import Prompt, answers, run_digest

    for patch in applied(model):
        check_method(patch.method, "Give the model without it, or ask with `hf-longctx generate`")
    check(find_decoder(model))  # before the document is read
    prompt = Prompt(tokenizer, document)
    notes().print(f"{len(prompt.document_ids):,} tokens to share", style="dim", highlight=False)
    if kept is None:
        for question, answer in zip(asked, answers(model, prompt, asked, **how), strict=True):
            print(f"> {question}\n{answer}\n", flush=True)
        return
    free = ("batch_size", "chunk", "prefix_cache")  # what an answer does not depend on
    digest = run_digest(model, tokenizer, prompt, {key: value for key, value in how.items() if key not in free})
    missing = kept.of(digest).missing(asked)
    if len(missing) < len(asked):
        note = f"{len(asked) - len(missing):,} of {len(asked):,} answers are in {kept.path} already"
        notes().print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    if missing:
        with Progress("answers", len(missing)) as progress:
            for question, answer in zip(missing, answers(model, prompt, missing, **how), strict=True):
                kept.add(question, answer)
                progress.advance(1)
    told = f"Wrote {len(missing):,} answers to {kept.path}."
    notes().print(told, markup=False, highlight=False, soft_wrap=True)


def _lines(path: Path) -> list[str]:
    from ..text import lines_of, read_pieces

    if str(path) == "-":
        raise ValueError("--questions -: expected a file with one question per line.")
    if not path.exists():
        raise FileNotFoundError(f"No text file at --questions {path}: expected one with one question per line.")
    if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").strip():
        raise ValueError(f"--questions {path}: it is empty; expected one question per line.")
    return [line.strip() for line in lines_of("".join(read_pieces(path))) if line.strip()]
