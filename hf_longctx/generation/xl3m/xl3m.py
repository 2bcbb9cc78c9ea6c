"""XL3M: find the segments of a text that matter for a question, read only those, and answer with stock `generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...text.pieces import encode_pieces
from .arguments import files, opened, per_row, prompts, refuse_filled_cache
from .decoding import decode, decode_whole
from .frame import Frame
from .prompt import around_text, split, text_before
from .search import Progress
from .selection import all_of
from .settings import Segmenting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class XL3M(Segmenting):
    """XL3M (Wang et al. 2024, https://arxiv.org/abs/2405.17755): answer from the segments that matter for a question.

    It reads `[head; segment; question]` for every segment of a text on its own, and puts those that matter together in
    the order of the text. Any causal language model, no training; time grows with the text, memory does not.

    `model.generate(ids, custom_generate=XL3M(), max_new_tokens=...)`. A prompt that fits the trained length is answered
    by stock `generate` as it is.

    Use when: the answer is in a few places of a text far longer than the trained length.

    Cannot: answer what needs most of the text (a summary), or find a fact that has nothing to do with the question
    until another fact is known.

    Costs: one forward over the text, in short pieces, for each question; nothing is kept of it.

    The paper gives neither sizes nor a stopping rule. hf_longctx's are the segment and its overlap, the share of the
    trained length that is read, `keep`, and two of the scores. `model_cards/xl3m.md` has measurements.

    Args:
        segment: Tokens of a segment.
        overlap: How many of them two neighbours share, so that what one cuts in two the other has whole.
        score: "entropy" is that of the next-token distribution after [segment; question], the paper's certainty.
            "question_nll" is how surprising the question itself is there: it falls where the text speaks of its
            subject. "gain" is its drop below the usual value in this text, token by token (`scoring.gain`): the style
            of a segment, which is most of the spread of the mean, does not count.
        keep: How far from the median segment to the best one a segment must be to be kept, 0 to 1. 0 keeps whatever
            there is room for, 1 the best only.
        key_context: Tokens of the text that are read again, at most. None: a quarter of the trained length.
        question_tokens: Tokens at the end of the prompt that are the question, where the call does not say.
        window: The trained length. None: the config's `max_position_embeddings`.
    """

    name: ClassVar[str] = "xl3m"
    summary: ClassVar[str] = "reads the segments of a text that matter for a question, in `generate`"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.17755"
    takes_all_of_generate: ClassVar[bool] = True
    reads_documents: ClassVar[bool] = True

    def check_room(self, model: PreTrainedModel, n_tokens: int) -> None:
        """Raise ValueError if the prompt must be cut into segments, and this model has no room for one."""
        frame = Frame(model, self, new_tokens=0)
        if n_tokens > frame.window:
            frame.check_room()

    def answer(
        self,
        model: Any,
        tokenizer: Any,
        document: Iterable[str],
        question: str,
        *,
        scores_file: Path | None = None,
        progress: Callable[[int], None] | None = None,
        **generate: Any,
    ) -> Any:
        """Answer a question to a document that comes in pieces of text; returns the `Selection` that was read."""
        head, tail = around_text(tokenizer, question)
        _, (found,) = model.generate(
            torch.tensor([[*head, *tail]], device=model.device),
            custom_generate=self,
            document=encode_pieces(tokenizer, document, bos=False, after=text_before(tokenizer, head)),
            head=len(head),
            question=len(tail),
            scores_file=scores_file,
            read_progress=progress,
            return_segments=True,
            **generate,
        )
        return found

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        question: int | str | Sequence[Any] | Tensor | None = None,
        head: int | None = None,
        document: Iterable[Any] | Path | None = None,
        scores_file: str | Path | None = None,
        accelerator: Any = None,
        compile: bool = False,
        read_progress: Progress | None = None,
        return_segments: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        streamer: Any = None,
        assistant_model: Any = None,
        assistant_tokenizer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Called by `generate`, which passes these on under the same names.

        Settings of the call:
            question: What is asked: how many tokens at the prompt's end it has; or its words (needs `tokenizer`) or
                ids, which are looked for from the end, and are the question with all that follows; or a list with one
                of these for every row. None: the user's last turn, if `tokenizer` has a chat template and that turn
                fits in half the window; else the last `question_tokens`.
            head: How many tokens stand before the text. None: what the chat template of `tokenizer` puts before the
                user's first words, or the beginning-of-text token if the prompt begins with it.
            document: The text, if it is not in the prompt; it stands between head and question. A file of UTF-8 text as
                a `Path` (needs `tokenizer`), or token ids as `hf_longctx.stream` takes them. It is never whole in
                memory.
            scores_file: Scores are kept in this file as they come, and are not computed again by the same call.
            accelerator: `accelerate.Accelerator()` or `PartialState()`: every process scores its share of the segments.
                All must be called with the same text, and return the same.
            compile: Run the decoder layers compiled (`torch.compile`) while scoring. It pays for texts of millions of
                tokens: the first call of a process compiles. Scores may differ by rounding.
            read_progress: Called with the number of tokens scored so far.
            return_segments: Return `(output, [Selection, ...])`, a `Selection` for every row of the prompt.
            tokenizer, streamer, assistant_model, assistant_tokenizer: As `generate` takes them.

        Returns:
            What stock `generate` returns. `sequences` begin with the prompt as it was given.

        Raises:
            ValueError: A prompt that does not fit the window has no text between head and question, or no room for a
                segment between them, or comes with a cache that is not empty; the `document` is empty.
            SourceError: `document` raised while it was read.
        """
        settings = (self.stored_in(generation_config) or self) if self is xl3m else self
        frame = Frame(model, settings, new_tokens=generation_config.max_length - input_ids.shape[1])
        rows = prompts(input_ids, model_kwargs, generation_config)
        if document is not None and len(rows) > 1:
            raise ValueError(f"document: one text for {len(rows)} prompts. Give one prompt, or the text in each.")
        whole = [document is None and frame.holds(len(row)) for row in rows]
        if not all(whole):
            refuse_filled_cache(model_kwargs)
        short, selections = [], []
        asked, stores = per_row(question, len(rows)), files(scores_file, len(rows))
        for row, fits, one, file in zip(rows, whole, asked, stores, strict=True):
            parts = split(
                row, question=one, head=head, tokenizer=tokenizer, bos=generation_config.bos_token_id,
                window=frame.window, tail=settings.question_tokens, whole=fits,
            )  # fmt: skip
            context, selection = (parts.text.tolist(), all_of(len(parts.text))) if fits else frame.find(
                parts, opened(document, tokenizer, parts.head), scores_file=file, accelerator=accelerator,
                compile=compile, progress=read_progress,
            )  # fmt: skip
            short.append([*parts.head, *context, *parts.question])
            selections.append(selection)
        given = {
            "tokenizer": tokenizer, "streamer": streamer, "assistant_model": assistant_model,
            "assistant_tokenizer": assistant_tokenizer,
        }  # fmt: skip
        output = (decode_whole if all(whole) else decode)(
            model, input_ids, short, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
            generation_config=generation_config, given={k: v for k, v in given.items() if v is not None},
            model_kwargs=model_kwargs,
        )  # fmt: skip
        return (output, selections) if return_segments else output


xl3m = XL3M()
"""For `custom_generate=`: the settings that the model carries (`XL3M(...).store_(model)`), or the defaults."""
