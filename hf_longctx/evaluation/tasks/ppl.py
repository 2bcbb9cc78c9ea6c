"""Perplexity of the same last tokens of a text's spans, with more and more context before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...text.corpora import documents
from ...text.tokens import bos_prefix
from ..perplexity import check_lengths, fixed_targets, perplexity
from ..report import plots
from ..report.figure import write_figure
from ..rows import compared
from ..task import At, Cell, Prepared, Request, Task, Value, Values, cost, digest, setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task):
    """See `fixed_targets`. Of a large file no more is read than spans spread over it take."""

    name: ClassVar[str] = "ppl"
    about: ClassVar[str] = "perplexity of the same last tokens after more and more context"
    documents: int = setting(4, "Spans of the text.")
    n_targets: int = setting(1024, "Tokens scored at the end of each span.")
    chunk: int = setting(4096, "Tokens a forward pass reads while nothing is scored.")
    score_chunk: int = setting(1024, "Tokens a forward pass reads while its logits are kept.")

    @property
    def at_least(self) -> int:  # type: ignore[override]  # of the settings
        """The targets have to fit the window."""
        return self.n_targets

    def check(self, request: Request) -> None:
        """ValueError for lengths that the targets fill, and depths."""
        plots.require_matplotlib()
        if request.depths is not None:
            raise ValueError(f"depths={list(request.depths)}: perplexity has no depth. Leave the depths out.")
        check_lengths(request.sorted().lengths, self.n_targets)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, request: Request) -> Prepared:
        """Cut the text into spans of the longest length."""
        return _Spans(self, tokenizer, request)


class _Spans(Prepared):
    def __init__(self, task: Perplexity, tokenizer: PreTrainedTokenizerBase, request: Request) -> None:
        self.task, self.request = task, request
        self.ids_NL = documents(tokenizer, request.text, max(request.lengths), task.documents)
        self.bos = bos_prefix(tokenizer)

    def settings(self, window: int) -> dict[str, Any]:
        own = {name: getattr(self.task, name) for name in ("n_targets", "documents", "chunk", "score_chunk")}
        token_ids = digest(self.ids_NL.numpy().tobytes())
        return {"text": Path(self.request.text).name, **own, "bos": self.bos, "token_ids": token_ids}

    def places(self) -> list[At]:
        return [(length, i) for length in self.request.lengths for i in range(self.task.documents)]

    def cell(self, kind: str, at: At, window: int | None) -> Cell:
        # Within the window truncation changes nothing, and beyond it the length does not matter.
        length = min(at[0], window or at[0])
        # The last token is never read.
        return Cell((kind, length, at[1]), length, length - 1)

    def value(self, model: Any, cell: Cell, progress: Callable[[int], None]) -> Value:
        _, length, i = cell.key
        (score,) = fixed_targets(
            model,
            [self.ids_NL[i]],
            [length],
            n_targets=self.task.n_targets,
            bos_token_id=self.bos[0] if self.bos else None,
            chunk=self.task.chunk,
            score_chunk=self.task.score_chunk,
            progress=progress,
        )
        return {"nll": score.nll[0]}

    def rows(self, values: Values, window: int) -> list[dict[str, Any]]:
        return perplexity_rows(values, self.task.n_targets)

    def write(self, out: Path, results: Mapping[str, Any], values: Values) -> None:
        title = f"Perplexity of the same last {self.task.n_targets:,} tokens by context read"
        write_figure(out, results, title, f"{self.task.documents} documents")


def perplexity_rows(values: Values, n_targets: int) -> list[dict[str, Any]]:
    """One row per length. Places are (length, document)."""
    rows = []
    for length in dict.fromkeys(length for length, _ in next(iter(values.values()))):
        found = {name: [value for at, value in many.items() if at[0] == length] for name, many in values.items()}
        nll = {name: [value["nll"] for value in many if value] for name, many in found.items() if None not in many}
        each = {name: perplexity(nll[name]) if name in nll else None for name in values}
        what = f"perplexity of the last {n_targets:,} tokens, {length:,} read"
        detail = {"length": length, "nll_per_document": nll, **cost(found)}
        rows.append(compared(what, each, "perplexity", why="out of memory", detail=detail))
    return rows


ALONE = {"ppl": Perplexity}
