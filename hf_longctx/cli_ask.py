"""`hf-longctx ask`: one document, many questions."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from hf_longctx.cli_options import (
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
    sampling,
)


def ask(
    model: Model,
    document: Annotated[str, typer.Option(help="A text file, -, or python-docs.", show_default=False)],
    questions: Annotated[Path, typer.Option(help="A text file, a question a line.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File for questions and answers, a JSON object a line.")] = None,
    prefix_cache: Annotated[Path | None, typer.Option(help="Folder that keeps what was read for next time.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered at once.")] = 32,
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
    from hf_longctx.anatomy import find_tower
    from hf_longctx.attention.shared import check, check_method
    from hf_longctx.questions import Prompt, answers
    from hf_longctx.text_stream import read_pieces

    if chosen is not None:
        check_method(chosen)  # before the model is loaded
    pieces = read_pieces(document)
    loaded, tokenizer = load_model(model, dtype, device)
    if chosen is not None:
        chosen.apply(loaded)
    check(find_tower(loaded))  # before the document is read
    prompt = Prompt(tokenizer, pieces)
    notes().print(f"{len(prompt.document_ids):,} tokens to share", style="dim", highlight=False)
    found = answers(
        loaded, prompt, asked, batch_size=batch_size, prefix_cache=prefix_cache, chunk=prefill_chunk_size,
        max_new_tokens=max_new_tokens, **sampling(sample),
    )  # fmt: skip
    with nullcontext(sys.stdout) if out is None else out.open("w", encoding="utf-8") as file:
        for question, answer in zip(asked, found, strict=True):
            line = json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
            print(f"> {question}\n{answer}\n" if out is None else line, file=file, flush=True)
    if out is not None:
        notes().print(f"Wrote {len(asked):,} answers to {out}.", markup=False, highlight=False, soft_wrap=True)


def _lines(path: Path) -> list[str]:
    from hf_longctx.text_stream import lines_of, read_pieces

    if str(path) == "-":
        raise ValueError("--questions -: expected a file with a question a line.")
    return [line.strip() for line in lines_of("".join(read_pieces(path))) if line.strip()]
