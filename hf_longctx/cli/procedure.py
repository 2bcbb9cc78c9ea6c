"""`hf-longctx generate --method NAME` with a procedure that reads documents, such as xl3m."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import document_pieces, load_model, notes, resumes

if TYPE_CHECKING:
    from ..generation.procedure import Procedure


def answer(
    procedure: Procedure,
    settings: list[str] | None,
    model: tuple[str, str, str | None],
    asked: tuple[str | None, str | None, str | None],
    scores: Path | None,
    **generate: Any,
) -> None:
    """Write the answer as it comes, and say what was read for it.

    Args:
        procedure: What answers. Without `settings`, those that the model carries take its place.
        settings: As they were typed.
        model: The options --model, --dtype and --device.
        asked: The options --prompt, --document and --question.
        scores: The option --scores.
        generate: Arguments of `model.generate`.
    """
    pieces, question = document_pieces(f"--method {procedure.name}", *asked)
    with nullcontext() if scores is None else resumes(scores, "--scores", file=True):
        loaded, tokenizer = load_model(*model)
        import torch
        from transformers import TextStreamer

        from ..console.progress import Progress

        progress = Progress("tokens read", console=notes())

        class Answer(TextStreamer):
            """Begins to write when there is nothing more to read."""

            def put(self, value: torch.Tensor) -> None:
                if not self.next_tokens_are_prompt:
                    progress.stop()
                super().put(value)

        if not settings:
            procedure = procedure.stored_in(loaded.generation_config) or procedure
        with progress:
            found = procedure.answer(
                loaded, tokenizer, pieces, question, scores_file=scores, progress=progress.reach,
                streamer=Answer(tokenizer, skip_prompt=True, skip_special_tokens=True), **generate,
            )  # fmt: skip
        notes().print(str(found), style="dim", highlight=False)
