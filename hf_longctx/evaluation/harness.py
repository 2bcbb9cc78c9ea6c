"""EleutherAI's lm-eval on a patched model: the length that the method reads, and truncation that tasks ask for.

lm-eval's own `HFLM(pretrained=model, tokenizer=tokenizer, max_length=reads(model))` works unchanged on a patched model.
What it lacks is here: a `max_length` in step with the method, and LongBench's truncation in the middle.
"""

# L prompt length
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_longctx.attention.position_free import PositionFree
from hf_longctx.evaluation.tasks.sample import shorten
from hf_longctx.installing import install_extra
from hf_longctx.patch import applied
from hf_longctx.rope.parameters import readable_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDLESS = 2**20  # max_length for methods that read without an end; lm-eval wants a number
CUTS = ("auto", "left", "middle", "error")


def check_installed() -> None:
    """ImportError, which says what to install, where lm-eval isn't."""
    _lm_eval()


def reads(model: Any) -> int:
    """Tokens that a model reads with what is applied to it: for `max_length`.

    The trained length, the factor times that of a RoPE scaling, or 1,048,576 with a window that moves on for ever.

    Raises:
        ValueError: The config names no trained length.
    """
    methods = [patch.method for patch in applied(model)]
    if any(method.decides_positions and not isinstance(method, PositionFree) for method in methods):
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
            the left for others, and "error" refuses prompts that do not fit.
        batch_size: Prompts read at once.
        settings: Further ones of HFLM.

    Raises:
        ImportError: lm-eval isn't installed.
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
            middle = [self._truncate == "middle" or self._asks(request) for request in requests]
            said: list[str | None] = [None] * len(requests)
            for wanted in (False, True):
                own = [i for i, is_middle in enumerate(middle) if is_middle == wanted]
                if not own:
                    continue
                self._middle = wanted
                try:
                    answers = super().generate_until([requests[i] for i in own], disable_tqdm=disable_tqdm)
                finally:
                    self._middle = False
                for i, answer in zip(own, answers, strict=True):
                    said[i] = answer
            return [text or "" for text in said]

        def tok_batch_encode(
            self, strings: Iterable[str], padding_side: str = "left", left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            texts = list(strings)
            if left_truncate_len is None or not (self._middle or self._truncate == "error"):
                return super().tok_batch_encode(texts, padding_side, left_truncate_len, truncation)
            rows = [self.tok_encode(text) for text in texts]
            longest = max(map(len, rows))
            if self._truncate == "error" and longest > left_truncate_len:
                raise ValueError(
                    f"a prompt has {longest:,} tokens and there is room for {left_truncate_len:,}. Raise max_length, "
                    'or choose how to cut it: truncate="middle" or "left".'
                )
            rows = [shorten(row, left_truncate_len, "middle") for row in rows]
            width = max(map(len, rows))
            pad = self.tokenizer.pad_token_id
            ids = [[pad] * (width - len(row)) + row for row in rows]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            return torch.tensor(ids), torch.tensor(mask)

        def _asks(self, request: Any) -> bool:
            return self._truncate == "auto" and str(request.task_name or "").startswith("longbench")

    return LongContextLM
