"""Passkey retrieval: a five-digit number hidden at a known depth of a long, irrelevant text.

Landmark Attention (Mohtashami & Jaggi 2023, https://arxiv.org/abs/2305.16300) introduced the task; the wording is its
own, as is YaRN's. Two things differ from both: the number always has five digits and every prompt of a length has
exactly that many tokens, so that neither is a hidden variable of the grid.
"""

# T trials, L prompt length
from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..text.joins import ids_after
from ..text.tokens import bos_prefix, encode
from .answer import greedy
from .sample import check_depth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
INFO = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class PasskeyCell:
    """The number `correct` of `trials` prompts of `length` tokens with the key at `depth` (0 first, 1 last)."""

    length: int
    depth: float
    trials: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of the prompts that were answered with the key."""
        return self.correct / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.trials)


def wilson_interval(correct: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); sensible also at 0 or all of a few trials.

    Raises:
        ValueError: `trials` is below 1 or `correct` is outside 0 to `trials`.
    """
    if trials < 1 or not 0 <= correct <= trials:
        raise ValueError(f"correct={correct} of trials={trials}: expected at least 1 trial and 0 to {trials} correct.")
    z2 = 1.959964**2
    share, shrink = correct / trials, 1 + z2 / trials
    centre = (share + z2 / (2 * trials)) / shrink
    half = math.sqrt(z2 * share * (1 - share) / trials + z2**2 / (4 * trials**2)) / shrink
    # At 0 and at all correct the bound is exact; rounding must not move it past 0 or 1.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == trials else centre + half)


def passkey_prompts(
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    depth: float,
    *,
    trials: int,
    seed: int = 0,
    haystack: str | Sequence[int] = "filler",
) -> tuple[Tensor, list[str]]:
    """Prompts of one cell. They depend on the arguments only, not on the rest of the grid.

    Args:
        tokenizer: Its beginning-of-text token leads the prompt where it adds one by itself.
        length: Tokens of every prompt, exactly: the haystack is cut to what the other parts leave.
        depth: Share of the haystack that stands before the key, 0 to 1.
        trials: Number of prompts, each with a key of its own.
        seed: Of keys and, in a real text, of where in it the haystack begins.
        haystack: "filler" for the paper's five sentences, or a text, or the token ids of one; repeated when short.

    Returns:
        (trials, length) token ids and the keys.

    Raises:
        ValueError: `length` is too small for the parts, `depth` or `trials` is out of range, or the text is empty.
    """
    check_depth(depth)
    if trials < 1:
        raise ValueError(f"trials={trials}: expected at least 1.")
    hay = haystack_ids(tokenizer, haystack)
    head = bos_prefix(tokenizer) + encode(tokenizer, TASK + "\n")
    question = ids_after(tokenizer, "a", "\n" + QUESTION)
    rows, keys = [], []
    for trial in range(trials):
        rng = random.Random(f"{seed}/{length}/{float(depth)}/{trial}")
        key = str(rng.randrange(10_000, 100_000))
        info = ids_after(tokenizer, "a", "\n" + INFO.format(key=key) + "\n")
        space = length - len(head) - len(info) - len(question)
        if space < 0:
            raise ValueError(
                f"length={length}: the task, the pass key and the question take {length - space} tokens with this "
                f"tokenizer. Use a length of at least {length - space}, more to hide the key in something."
            )
        # The filler has one place to begin; a real text is new in every trial.
        offset = 0 if haystack == "filler" else rng.randrange(len(hay))
        text = [hay[(offset + i) % len(hay)] for i in range(space)]
        before = round(depth * space)
        rows.append(head + text[:before] + info + text[before:] + question)
        keys.append(key)
    return torch.tensor(rows), keys


def passkey_cell(
    model: Any, tokenizer: PreTrainedTokenizerBase, length: int, depth: float, **options: Any
) -> PasskeyCell:
    """`passkey_grid` of one length and depth."""
    (cell,) = passkey_grid(model, tokenizer, lengths=[length], depths=[depth], **options)
    return cell


def passkey_grid(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int = 10,
    seed: int = 0,
    haystack: str | Sequence[int] = "filler",
    batch_size: int = 1,
    keep_last: int | None = None,
    prefill_chunk_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[PasskeyCell]:
    """Ask for the key greedily and compare the first run of digits in the generated text with it.

    Args:
        model: Anything with `generate`, in eval mode.
        tokenizer: Its tokenizer.
        lengths: Of prompts, in tokens.
        depths: Of the key, 0 to 1.
        trials: Prompts per cell.
        seed: As in `passkey_prompts`.
        haystack: As in `passkey_prompts`.
        batch_size: Prompts per `generate` call, of one length and maybe several depths: nothing is padded.
        keep_last: The model gets only this number of a prompt's last tokens: the truncation baseline. Plain
            truncation, so the task's first words and the beginning-of-text token are lost with the rest.
        prefill_chunk_size: Handed to `generate`: tokens of a prompt that one forward pass reads.
        progress: Called after each batch with the number of its prompts' tokens, before truncation.

    Returns:
        A cell for every length and depth, length by length.

    Raises:
        ValueError: As in `passkey_prompts`, or `batch_size` or `keep_last` is below 1.
    """
    if batch_size < 1 or (keep_last is not None and keep_last < 1):
        raise ValueError(f"batch_size={batch_size}, keep_last={keep_last}: expected at least 1 prompt and 1 token.")
    # a long text is tokenized once, not once per cell
    hay = haystack if haystack == "filler" else haystack_ids(tokenizer, haystack)
    cells = []
    for length in lengths:
        asked = [passkey_prompts(tokenizer, length, d, trials=trials, seed=seed, haystack=hay) for d in depths]
        ids_TL, keys = torch.cat([ids for ids, _ in asked]), [key for _, many in asked for key in many]
        if keep_last is not None:
            ids_TL = ids_TL[:, -keep_last:]
        right: list[bool] = []
        for start in range(0, len(keys), batch_size):
            batch = ids_TL[start : start + batch_size]
            right += _ask(model, tokenizer, batch, keys[start : start + batch_size], prefill_chunk_size)
            if progress is not None:
                progress(len(batch) * length)
        for i, depth in enumerate(depths):
            cells.append(PasskeyCell(length, depth, trials, sum(right[i * trials : (i + 1) * trials])))
    return cells


def haystack_ids(tokenizer: PreTrainedTokenizerBase, haystack: str | Sequence[int]) -> list[int]:
    """Token ids that are repeated to fill a prompt; ids are returned as they are."""
    if not isinstance(haystack, str):
        ids = list(haystack)
    else:
        text = " ".join([FILLER] * 32) if haystack == "filler" else haystack.strip()
        # the line break stands between two repetitions
        ids = ids_after(tokenizer, "a\n", text + "\n") if text else []
    if not ids:
        raise ValueError('haystack is empty: expected "filler", a text, or its token ids.')
    return ids


def _ask(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids_BL: Tensor, keys: Sequence[str], prefill_chunk_size: int | None
) -> list[bool]:
    """Which of these prompts the model answers with their key."""
    output = model.generate(
        ids_BL.to(model.device),
        attention_mask=torch.ones_like(ids_BL, device=model.device),
        generation_config=greedy(model, tokenizer, MAX_NEW_TOKENS, prefill_chunk_size),
    )
    # Only generated text counts: the prompt may hold digits of its own.
    answers = tokenizer.batch_decode(output[:, ids_BL.shape[1] :], skip_special_tokens=True)
    found = [re.search(r"\d+", answer) for answer in answers]
    return [hit is not None and hit.group() == key for hit, key in zip(found, keys, strict=True)]
