"""`hf-longctx generate --method xl3m`: a question to a document that is read in segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import document_pieces, load_model, notes, resumes, sampling

if TYPE_CHECKING:
    from ..generation.xl3m import XL3M


def settings_of(settings: list[str] | None) -> XL3M:
    """The settings that were given, over the defaults."""
    from ..generation.xl3m import XL3M
    from ..settings import read_settings

    return XL3M.from_fields(read_settings(settings or []))


def answer(
    model: str,
    settings: list[str] | None,
    prompt: str | None,
    document: str | None,
    question: str | None,
    scores: Path | None,
    max_new_tokens: int,
    sample: bool,
    dtype: str,
    device: str | None,
) -> None:
    """Find the segments that matter, say which, and write the answer as it comes."""
    chosen = settings_of(settings) if settings else None  # else the model's own
    if document is None or prompt is not None:
        raise ValueError("--method xl3m reads a document: give --document FILE (or -) and --question TEXT.")
    pieces, asked = document_pieces(prompt, document, question)
    with nullcontext() if scores is None else resumes(scores, "--scores", file=True):
        loaded, tokenizer = load_model(model, dtype, device)
        _answer(loaded, tokenizer, chosen, pieces, asked, scores, max_new_tokens=max_new_tokens, **sampling(sample))


def _answer(
    loaded: Any, tokenizer: Any, chosen: XL3M | None, pieces: Iterator[str], asked: str, scores: Path | None, **how: Any
) -> None:
    import torch
    from transformers import TextStreamer

    from ..console.progress import Progress
    from ..generation.xl3m import xl3m
    from ..generation.xl3m.prompt import around_text, text_before
    from ..generation.xl3m.reading import SourceError
    from ..text.pieces import encode_pieces

    head, tail = around_text(tokenizer, asked)
    progress = Progress("tokens read", console=notes())

    class Answer(TextStreamer):
        """Begins to write when there is nothing more to read."""

        def put(self, value: torch.Tensor) -> None:
            if not self.next_tokens_are_prompt:
                progress.stop()
            super().put(value)

    try:
        with progress:
            _, (found,) = loaded.generate(
                torch.tensor([[*head, *tail]], device=loaded.device),
                custom_generate=chosen or xl3m,
                document=encode_pieces(tokenizer, pieces, bos=False, after=text_before(tokenizer, head)),
                head=len(head),
                question=len(tail),
                scores_file=scores,
                read_progress=progress.reach,
                return_segments=True,
                streamer=Answer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                **how,
            )
    except SourceError as error:
        # the file's own error says more to who named the file
        raise error.__cause__ or error from None
    notes().print(str(found), style="dim", highlight=False)
