"""One question to one text: score every segment, on one process or many, and choose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..evaluation.cells import CellStore
from ..fingerprint import model_digest
from .reading import Batch, batches
from .scoring import Scorer
from .selection import Best, Kept, Selection, choose, spans, splice, threshold

if TYPE_CHECKING:
    from .xl3m import XL3M

Progress = Callable[[int], None]


class Search:
    """Finds what of a text to read for a question.

    Args:
        model: a causal language model in eval mode.
        head, question: ids before and behind every segment; the question has at least one.
        settings: see `XL3M`.
        room: tokens of the text that may be kept.
        scores_file: keeps scores, and gives them to the next search of the same text by the same model. With several
            processes each has a file of its own.
        accelerator: with `process_index` and `num_processes`; None: this process scores everything.
        progress: called with the number of tokens scored by this process.
    """

    def __init__(
        self,
        model: Any,
        head: list[int],
        question: list[int],
        settings: XL3M,
        *,
        room: int,
        scores_file: str | Path | None = None,
        accelerator: Any = None,
        progress: Progress | None = None,
    ) -> None:
        self._scorer = Scorer(model, head, question)
        self._settings, self._room, self._progress = settings, room, progress
        self._rank = 0 if accelerator is None else int(accelerator.process_index)
        self._ranks = 1 if accelerator is None else int(accelerator.num_processes)
        self._store = self._open(model, head, question, scores_file)

    def __call__(self, text: Iterator[Tensor]) -> tuple[list[int], Selection]:
        """The ids to read and what was found, for a text of at least one token in 1-D tensors."""
        s = self._settings
        rows = self._scorer.rows(s.segment)
        best = Best(self._room // (s.segment - s.overlap) + 2)
        digest = hashlib.sha256()
        scores: list[tuple[int, Tensor]] = []  # first segment, (N, 2)
        tokens = 0
        waiting: tuple[Batch, Tensor] | None = None

        def settle(batch: Batch, score_N2: Tensor) -> None:
            score_N2 = score_N2.cpu()
            if self._store is not None and (key := _key(batch)) not in self._store:
                self._store.put(key, score_N2.tolist())
            scores.append((batch.first, score_N2))
            best.add(self._ranking(score_N2), batch.first, batch.starts, batch.ids_NS)
            if self._progress is not None:
                self._progress(batch.starts[-1] + batch.ids_NS.shape[1])

        for i, batch in enumerate(batches(text, s.segment, s.overlap, rows)):
            tokens = batch.starts[-1] + batch.ids_NS.shape[1]
            if self._ranks > 1:
                digest.update(batch.ids_NS.cpu().numpy().tobytes())
            if i % self._ranks != self._rank:
                continue
            kept = None if self._store is None else self._store.get(_key(batch))
            score_N2 = self._scorer(batch.ids_NS) if kept is None else torch.tensor(kept)
            # the next batch is on its way to the GPU before this one's scores are waited for
            if waiting is not None:
                settle(*waiting)
            waiting = batch, score_N2
        if waiting is not None:
            settle(*waiting)
        return self._choose(best, scores, tokens, digest.hexdigest())

    def _choose(
        self, best: Best, scores: list[tuple[int, Tensor]], tokens: int, digest: str
    ) -> tuple[list[int], Selection]:
        if self._ranks > 1:
            best, scores = self._gathered(best, scores, digest)
        scores_N2 = torch.cat([score for _, score in sorted(scores, key=lambda pair: pair[0])])
        limit = threshold(self._ranking(scores_N2), self._settings.keep)
        chosen = choose(best.found, limit, self._room)
        alone = self._scorer.without_segment()
        kept = []
        for c in chosen:
            nll, entropy = scores_N2[c.number].tolist()
            kept.append(Kept(c.number, c.start, c.start + len(c.ids), nll, alone - nll, entropy))
        return splice(chosen), Selection(tuple(kept), tuple(spans(chosen)), tokens, limit, alone, scores_N2)

    def _gathered(
        self, best: Best, scores: list[tuple[int, Tensor]], digest: str
    ) -> tuple[Best, list[tuple[int, Tensor]]]:
        """What all processes found, the same on each."""
        from accelerate.utils import gather_object

        found = gather_object([(best.found, scores, digest)])
        if len({digest for _, _, digest in found}) > 1:
            raise ValueError("accelerator: the processes were called with different texts. Give each the same.")
        for rank, (candidates, others, _) in enumerate(found):
            if rank != self._rank:
                best.merge(candidates)
                scores = scores + others
        return best, scores

    def _ranking(self, score_N2: Tensor) -> Tensor:
        """One number a segment; lower is better."""
        return score_N2[:, 1 if self._settings.score == "entropy" else 0]

    def _open(self, model: Any, head: list[int], question: list[int], file: str | Path | None) -> CellStore | None:
        if file is None:
            return None
        path = Path(file)
        if self._ranks > 1:
            path = path.with_name(f"{path.name}.{self._rank}-of-{self._ranks}")
        s = self._settings
        return CellStore(
            path,
            {
                "model": model_digest(model), "dtype": str(model.dtype), "head": head, "question": question,
                "segment": s.segment, "overlap": s.overlap,
            },
        )  # fmt: skip


def _key(batch: Batch) -> list[int | str]:
    """Place and contents: scores of a text that was changed since are not taken."""
    return [batch.first, len(batch.starts), hashlib.sha256(batch.ids_NS.cpu().numpy().tobytes()).hexdigest()[:16]]
