"""`Procedure`: a way to generate, called by `model.generate(..., custom_generate=procedure)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ..patch import unwrap
from ..registry import Recorded

P = TypeVar("P", bound="Procedure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Procedure(Recorded):
    """Base of every procedure. A subclass is called by `generate` as `__call__` says.

    Where `reads_documents` is set, `__call__` takes `head` and `question` as well, how many tokens of the prompt stand
    before the document and after it, and there is an `answer`.
    """

    kind: ClassVar[str] = "procedure"
    takes_all_of_generate: ClassVar[bool] = False  # streamer and tokenizer too, see hooks/transformers.py

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """What `generate` returns for `input_ids`, decoded this way."""
        raise NotImplementedError(f"{type(self).__name__} is abstract: subclass it and implement __call__.")

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
        """Answer a question to a document that comes in pieces of text, and return what to say of how it was read.

        Args:
            model: A causal language model in eval mode.
            tokenizer: Its tokenizer.
            document: Pieces of text.
            question: The question.
            scores_file: Keeps what was found out, for the same call after an interruption.
            progress: Called with the number of tokens read so far.
            generate: Arguments of `model.generate`: a streamer, max_new_tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} does not read documents.")

    def store_(self, model: nn.Module) -> None:
        """Make these the model's own settings: saved with it, in `generation_config.json`."""
        config: Any = unwrap(model).generation_config
        setattr(config, self.name, self.spec())
        # else loading leaves out what transformers does not know
        config._from_model_config = False

    @classmethod
    def stored_in(cls: type[P], generation_config: Any) -> P | None:
        """The settings that `store_` put into a generation config; None where there are none."""
        spec = getattr(generation_config, cls.name, None)
        if spec is None:
            return None
        if not isinstance(spec, Mapping):
            raise ValueError(
                f"generation_config.{cls.name} is {spec!r:.60}; expected the object that "
                f"{cls.__name__}(...).store_(model) writes."
            )
        return cls.from_fields({k: v for k, v in spec.items() if k != "name"})

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """The argument of `generate` that calls it."""
        yield {"custom_generate": self}
