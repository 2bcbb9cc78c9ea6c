"""`hf-longctx generate`: an answer to a prompt, or to a question about a document."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    ChunkSize,
    Device,
    Dtype,
    MethodName,
    Model,
    Sample,
    Settings,
    chosen_of,
    document_pieces,
    load_model,
    method_of,
    notes,
    prompt_text,
    reader_on,
    resumes,
    running,
    sampling,
)

if TYPE_CHECKING:
    from ..generation.procedure import Procedure


def generate(
    model: Model,
    method: MethodName = None,
    settings: Settings = None,
    prompt: Annotated[str | None, typer.Option(help="What to answer or continue.")] = None,
    document: Annotated[str | None, typer.Option(help="A text file to read first, or python-docs.")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about the document.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    prefill_chunk_size: ChunkSize = None,
    sample: Sample = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Never hold the whole document, which may be - (standard input).")
    ] = False,
    scores: Annotated[
        Path | None,
        typer.Option(help="With xl3m: file that keeps the scores of segments, for a run that is interrupted."),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Answer a prompt, or a question about a document; the text appears as it is written."""
    chosen = chosen_of(method, settings)
    asked, place = (prompt, document, question), (model, dtype, device)
    how = {"max_new_tokens": max_new_tokens, **sampling(sample)}
    if chosen is not None and chosen.reads_documents:
        if stream or prefill_chunk_size is not None:
            raise ValueError(
                f"--method {method} reads a document in pieces, and never holds it whole: leave --stream and "
                f"--prefill-chunk-size out."
            )
        _from_document(chosen, not settings, place, asked, scores, how)  # type: ignore[arg-type]
        return
    if scores is not None:
        from ..registry import entries

        readers = " or ".join(name for name, entry in entries().items() if entry["reads_documents"])
        raise ValueError(f"--scores keeps the scores of segments: add --method {readers}.")
    if stream:
        _from_stream(method_of(method, settings), place, asked, prefill_chunk_size, how)
        return
    text = prompt_text(*asked)
    from transformers import TextStreamer

    loaded, tokenizer = load_model(*place)
    from ..text import prompt_inputs

    inputs = prompt_inputs(tokenizer, text).to(loaded.device)
    notes().print(f"{inputs['input_ids'].shape[1]:,} tokens to read", style="dim", highlight=False)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with running(chosen, loaded) as extra:
        loaded.generate(**inputs, streamer=streamer, prefill_chunk_size=prefill_chunk_size, **how, **extra)


def _from_stream(method: Any, place: Any, asked: Any, chunk: int | None, how: dict[str, Any]) -> None:
    """Read a document as it comes, then answer."""
    pieces, question = document_pieces("--stream", *asked)
    loaded, tokenizer = load_model(*place)
    from ..console.progress import Progress, counted
    from ..text import encode_pieces, with_question, written

    reader = reader_on(loaded, method, chunk)
    ids = encode_pieces(tokenizer, with_question(tokenizer, pieces, question), bos=not tokenizer.chat_template)
    with Progress("tokens read") as progress:
        reader.read(counted(ids, progress))
    notes().print(f"{reader.position:,} tokens read", style="dim", highlight=False)
    for text in written(tokenizer, reader.generate(**how)):
        print(text, end="", flush=True)
    print()


def _from_document(
    procedure: Procedure, stored: bool, place: Any, asked: Any, scores: Path | None, how: dict[str, Any]
) -> None:
    """Let a procedure read a document and answer, and say what it read. `stored`: the model's settings are taken."""
    pieces, question = document_pieces(f"--method {procedure.name}", *asked)
    with nullcontext() if scores is None else resumes(scores, "--scores", file=True):
        loaded, tokenizer = load_model(*place)
        from transformers import TextStreamer

        from ..console.progress import Progress

        progress = Progress("tokens read", console=notes())

        class Answer(TextStreamer):
            """Begins to write when there is nothing more to read."""

            def put(self, value: Any) -> None:
                if not self.next_tokens_are_prompt:
                    progress.stop()
                super().put(value)

        if stored:
            procedure = procedure.stored_in(loaded.generation_config) or procedure
        streamer = Answer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        with progress:
            found = procedure.answer(
                loaded, tokenizer, pieces, question, scores_file=scores, progress=progress.reach, streamer=streamer,
                **how,
            )  # fmt: skip
        notes().print(str(found), style="dim", highlight=False)
