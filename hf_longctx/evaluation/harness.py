"""EleutherAI's lm-eval on a patched model: the length that the method reads, and truncation that tasks ask for.

lm-eval's own `HFLM(pretrained=model, tokenizer=tokenizer, max_length=reads(model))` works unchanged on a patched model.
This module adds a `max_length` in step with the method, and LongBench's truncation in the middle.
"""

# L prompt length
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..patch import applied
from ..rope.parameters import readable_length
from ..upstream.installing import install_extra
from .sample import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDLESS = 2**20  # max_length for methods that read without an end; lm-eval wants a number
CUTS = ("auto", "left", "middle", "error")


def check_installed() -> None:
    """ImportError with the command that installs lm-eval, where it is missing."""
    _lm_eval()


def reads(model: Any) -> int:
    """Tokens that a model reads with its methods applied: for `max_length`.

    The trained length, the factor times that of a RoPE scaling, or 1,048,576 with a moving window.

    Raises:
        ValueError: The config names no trained length.
    """
    if any(patch.method.endless for patch in applied(model)):
        return ENDLESS
    length = readable_length(model.config.get_text_config())
    if length is None:
        raise ValueError("the config has no max_position_embeddings. Pass max_length=, the tokens the model reads.")
    return length


def harness_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    truncate: str = "auto",
    batch_size: int = 1,
    **settings: Any,
) -> Any:
    """A model as lm-eval takes it: an `HFLM` whose over-long prompts are cut as their task asks.

    Args:
        model: A causal language model in eval mode, stock or patched. Apply methods before, and leave them on.
        tokenizer: Its tokenizer.
        max_length: Tokens of prompt and answer; `reads(model)` by default.
        truncate: "left" is lm-eval's own way, "middle" LongBench's, "auto" the middle for tasks called longbench and
            the left for others, and "error" refuses prompts that do not fit. Of a request for the likelihood of an
            answer, the context is cut. A text whose own likelihood is asked for (perplexity) is read in windows by
            "left" and "auto", and refused by "middle" and "error" where one window does not hold it.
        batch_size: Prompts read at once.
        settings: Further ones of HFLM.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: `max_length` is more than the model reads, or `truncate` is none of these.
    """
    if truncate not in CUTS:
        raise ValueError(f"truncate={truncate!r}: expected one of {', '.join(CUTS)}.")
    most = reads(model)
    if max_length is not None and not 1 <= max_length <= most:
        raise ValueError(
            f"max_length={max_length}: the model reads 1 to {most:,} tokens as it is. Apply a method that reads "
            "further, or a larger factor of this one."
        )
    return _subclass()(model, tokenizer, max_length or most, truncate, batch_size, settings)


def run(
    harness: Any,
    tasks: Sequence[str],
    *,
    include: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` with the tasks of a folder of your own, and errors in place of bare ones.

    Args:
        harness: From `harness_model`, or any `LM`.
        tasks: Names.
        include: A folder of task YAMLs.
        metadata: For tasks that need some, such as RULER's {"max_seq_lengths": [4096]}.
        settings: Further ones of `simple_evaluate`: num_fewshot, limit, apply_chat_template ...

    Raises:
        ValueError: There is no such task.
    """
    evaluator, manager = _lm_eval()
    known = None if include is None else manager(include_path=include, include_defaults=False)
    # looking through all of lm-eval's tasks takes seconds
    if known is None or any(task not in known.all_tasks for task in tasks):
        known = manager(include_path=include)
    missing = [task for task in tasks if task not in known.all_tasks]
    if missing:
        raise ValueError(
            f"tasks {', '.join(missing)}: lm-eval has none of that name"
            f"{'' if include is None else f', nor has {include}'}. `lm_eval ls tasks` lists those it has."
        )
    found = evaluator.simple_evaluate(
        model=harness, tasks=list(tasks), task_manager=known, metadata=dict(metadata or {}), **settings
    )
    return dict(found)


def _lm_eval() -> tuple[Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ImportError(f"lm-eval is not installed. Install it: {install_extra('lm-eval')}.") from None
    return evaluator, TaskManager


def _subclass() -> type[Any]:
    """HFLM is only known where lm-eval is installed."""
    _lm_eval()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs as generated

    class LongContextLM(HFLM):
        """HFLM whose over-long prompts are cut as their task asks."""

        def __init__(
            self, model: Any, tokenizer: Any, max_length: int, truncate: str, batch_size: int, settings: dict[str, Any]
        ) -> None:
            super().__init__(
                pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, **settings
            )
            self._truncate, self._middle = truncate, False

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            needed: list[tuple[int, int]] = []
            for request in requests:  # before the first of them is generated
                context, settings = request.args
                asked = generated(dict(settings), self.max_gen_toks)["max_gen_toks"]
                if asked >= self.max_length:
                    raise ValueError(
                        f"an answer may take {asked:,} tokens, and prompt and answer {self.max_length:,} together. "
                        "Raise max_length, or lower the task's max_gen_toks."
                    )
                if self._truncate == "error":
                    needed.append((len(self.tok_encode(context)), self.max_length - asked))
            self._check_fits(needed)
            found = super().generate_until
            return list(self._each_its_way(requests, lambda some: found(some, disable_tqdm=disable_tqdm)))

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            found = super().loglikelihood
            return list(self._each_its_way(requests, lambda some: found(some, disable_tqdm=disable_tqdm)))

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            if self._truncate in ("middle", "error"):
                for request in requests:
                    length = len(self.tok_encode(request.args[0]))
                    if length > self.max_length:
                        raise ValueError(
                            f"a text has {length:,} tokens and there is room for {self.max_length:,}: of a text whose "
                            f"own likelihood is asked for, nothing can be cut, so truncate={self._truncate!r} refuses "
                            'it. Raise max_length, or let it be read in windows: truncate="left" or "auto".'
                        )
            return list(super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            cut = [self._cut(*request) for request in requests]
            if self._truncate == "error":
                self._check_fits([(len(context), self.max_length + 1 - len(answer)) for _, context, answer in cut])
            return super()._loglikelihood_tokens(cut, *args, **kwargs)

        def _cut(self, texts: Any, context: list[int], answer: list[int]) -> tuple[Any, list[int], list[int]]:
            """A request for the likelihood of an answer, its context cut; the last token is never read."""
            room = self.max_length + 1 - len(answer)
            if room < 1:
                raise ValueError(
                    f"an answer whose likelihood is asked for has {len(answer):,} tokens, and the model reads "
                    f"{self.max_length:,}. Raise max_length, or leave the task out."
                )
            # lm-eval cuts on the left by itself, and says so
            return texts, shorten(context, room, "middle") if self._middle else context, answer

        def _each_its_way(self, requests: list[Any], work: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
            """What `work` gives for requests whose middle is cut, and for the others."""
            middle = [self._truncate == "middle" or self._asks(request) for request in requests]
            given: list[Any] = [None] * len(requests)
            for wanted in (False, True):
                own = [i for i, is_middle in enumerate(middle) if is_middle == wanted]
                if not own:
                    continue
                self._middle = wanted
                try:
                    found = work([requests[i] for i in own])
                finally:
                    self._middle = False
                for i, one in zip(own, found, strict=True):
                    given[i] = one
            return given

        def _check_fits(self, needed: Sequence[tuple[int, int]]) -> None:
            """ValueError for the prompt that fits the least, given each one's length and room."""
            length, room = max(needed, key=lambda pair: pair[0] - pair[1], default=(0, 0))
            if length > room:
                raise ValueError(
                    f"a prompt has {length:,} tokens and there is room for {room:,}. Raise max_length, or choose how "
                    'to cut it: truncate="middle" or "left".'
                )

        def tok_batch_encode(
            self,
            strings: Iterable[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Tensor, Tensor]:
            texts = list(strings)
            if left_truncate_len is None or not (self._middle or self._truncate == "error"):
                return super().tok_batch_encode(texts, padding_side, left_truncate_len, truncation)
            rows = [self.tok_encode(text) for text in texts]
            if self._truncate == "error":
                self._check_fits([(len(row), left_truncate_len) for row in rows])
            rows = [shorten(row, left_truncate_len, "middle") for row in rows]
            width = max(map(len, rows))
            pad = self.tokenizer.pad_token_id
            ids = [[pad] * (width - len(row)) + row for row in rows]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            return torch.tensor(ids), torch.tensor(mask)

        def _asks(self, request: Any) -> bool:
            return self._truncate == "auto" and str(request.task_name or "").startswith("longbench")

    return LongContextLM
