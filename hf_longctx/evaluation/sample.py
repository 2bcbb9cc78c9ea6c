"""One question about one long text: what every task generates and every reader of a local file yields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..text.joins import ids_of_parts
from ..text.pieces import around
from ..text.tokens import bos_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUTS = ("middle", "document", "left")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt in parts, so that a method can take the document and the question apart.

    The user's turn is `instruction + context + question`, exactly: each part brings the white space around it.

    Args:
        id: Of this sample within its task.
        task: Name of the task, under which scores are averaged.
        context: The long document.
        question: What follows the document.
        answers: The references; what they mean is up to the metric.
        max_new_tokens: Tokens the model may write, the task's official number.
        metric: A name from `hf_longctx.evaluation.metrics`.
        instruction: What stands before the document.
        answer_prefix: The answer's beginning, given to the model; only what follows it is scored.
        length: Tokens of the whole prompt and `max_new_tokens`, for samples that were made for a length.
        depth: Where in the document the answer is, 0 first to 1 last, if it is at one place.
        chat: False keeps a prompt out of the chat template (LongBench's few-shot and code tasks).
        cut: What gives way when a prompt is too long: the "middle" of the user's turn (LongBench), the end of the
            "document" (L-Eval), or everything on the "left" (plain truncation).
        stop: The answer ends before the first of these.
        meta: What else a metric or a report needs.
    """

    id: str
    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    max_new_tokens: int
    metric: str
    instruction: str = ""
    answer_prefix: str = ""
    length: int | None = None
    depth: float | None = None
    chat: bool = True
    cut: str = "middle"
    stop: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cut not in CUTS:
            raise ValueError(f"cut={self.cut!r}: expected one of {', '.join(CUTS)}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: expected at least 1.")

    @property
    def user(self) -> str:
        """The user's turn."""
        return f"{self.instruction}{self.context}{self.question}"

    def to_dict(self) -> dict[str, Any]:
        """The sample as a JSON object, one line of the JSONL schema."""
        found = dataclasses.asdict(self)
        return {**found, "answers": list(self.answers), "stop": list(self.stop), "meta": dict(self.meta)}


def check_depth(depth: float) -> None:
    """ValueError for a depth that is no place in a text."""
    if not 0 <= depth <= 1:
        raise ValueError(f"depth={depth}: expected 0 (before the text) to 1 (after it).")


def prompt_text(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[str, str, str]:
    """Text before the user's turn, the turn, and the text after it, the answer's beginning included.

    A chat template is used where the tokenizer has one and the sample allows it. White space at the end of the answer's
    beginning is left out, since a token of most vocabularies begins with it; in a template that at its start, too.
    """
    if tokenizer.chat_template and sample.chat:
        head, tail = around(tokenizer)
        return head, sample.user, tail + sample.answer_prefix.strip()
    return "", sample.user, sample.answer_prefix.rstrip()


def encode_parts(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], list[int], list[int]]:
    """Token ids of what stands before the document, of the document, and of all that follows it.

    For methods that treat them differently. Together they are `encode`'s; a token across a seam is the later part's.
    """
    head, _, tail = prompt_text(tokenizer, sample)
    return _parts(tokenizer, sample, head + sample.instruction, sample.context, sample.question + tail)


def encode_all(
    tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], rooms: Sequence[int] | None = None
) -> list[Tensor]:
    """Token ids of the prompts, (L,) int32 each; the tokenizer works on all of them at once.

    A prompt that is longer than its room, in tokens, is cut as its `cut` says, outside of the chat template.

    Raises:
        ValueError: The parts of a prompt that cannot be cut are longer than its room.
    """
    texts = ["".join(prompt_text(tokenizer, sample)) for sample in samples]
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    found = []
    for i, sample in enumerate(samples):
        ids = [*_bos(tokenizer, sample), *rows[i]]
        if rooms is not None and len(ids) > rooms[i]:
            ids = _cut(tokenizer, sample, rooms[i])
        found.append(torch.tensor(ids, dtype=torch.int32))
    return found


def encode(tokenizer: PreTrainedTokenizerBase, sample: Sample, most: int | None = None) -> list[int]:
    """Token ids of one prompt; see `encode_all`."""
    return list(encode_all(tokenizer, [sample], None if most is None else [most])[0].tolist())


def _cut(tokenizer: PreTrainedTokenizerBase, sample: Sample, most: int) -> list[int]:
    """The ids of a prompt that is longer than its room."""
    head, user, tail = prompt_text(tokenizer, sample)
    if sample.cut == "document":
        before, middle, after = encode_parts(tokenizer, sample)
    else:
        before, middle, after = _parts(tokenizer, sample, head, user, tail)
    room = most - len(before) - len(after)
    if room < 1:
        raise ValueError(
            f"sample {sample.id!r} of {sample.task}: the parts around the text take {len(before) + len(after)} tokens, "
            f"and there is room for {most}. Give the prompt more room, or leave the sample out."
        )
    return before + shorten(middle, room, sample.cut) + after


def shorten(ids: list[int], most: int, cut: str) -> list[int]:
    """At most `most` of the ids: the first ("document"), the last ("left"), or half of each ("middle")."""
    if len(ids) <= most:
        return ids
    if cut == "document":
        return ids[:most]
    # the odd token of the middle goes to the end, where the question is
    first = 0 if cut == "left" else most // 2
    return ids[:first] + ids[len(ids) - (most - first) :]


def _parts(tokenizer: PreTrainedTokenizerBase, sample: Sample, *texts: str) -> tuple[list[int], list[int], list[int]]:
    before, middle, after = ids_of_parts(tokenizer, *texts)
    return _bos(tokenizer, sample) + before, middle, after


def _bos(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
    """A chat template writes the beginning-of-text token itself, if there is to be one."""
    return [] if tokenizer.chat_template and sample.chat else bos_prefix(tokenizer)
