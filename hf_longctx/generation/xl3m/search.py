"""One question to one text: score every segment, on one process or many, and choose."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ...storage.cells import CellStore
from ...storage.fingerprint import model_digest
from .reading import Batch, batches
from .running import OnItsWay, layers_compiled
from .scoring import Scorer, gain
from .selection import Best, Candidate, Kept, Selection, choose, spans, splice, threshold
from .settings import Segmenting

Progress = Callable[[int], None]
POOL = 4  # segments that are held for one that there is room for
FIRST = 64  # segments from which the others are told apart before all are known


class Search:
    """Finds the segments of a text to read for a question.

    `head` and `question` are ids before and after every segment, `room` the tokens of the text that may be kept. All
    else is as `XL3M.__call__` says; with several processes each has a `scores_file` of its own.
    """

    def __init__(
        self,
        model: Any,
        head: list[int],
        question: list[int],
        settings: Segmenting,
        *,
        room: int,
        scores_file: str | Path | None = None,
        accelerator: Any = None,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._scorer = Scorer(model, head, question, compile)
        self._settings, self._room, self._progress, self._compile = settings, room, progress, compile
        self._rank = 0 if accelerator is None else int(accelerator.process_index)
        self._ranks = 1 if accelerator is None else int(accelerator.num_processes)
        self._store = self._open(model, head, question, scores_file)

    def __call__(self, text: Iterator[Tensor]) -> tuple[list[int], Selection]:
        """The ids to read and what was found, for a text of at least one token in 1-D tensors."""
        s = self._settings
        pool = _Pool(POOL * (self._room // (s.segment - s.overlap) + 2), self._ranking)
        with layers_compiled(self._scorer.model) if self._compile else nullcontext():
            tokens, digest = self._read(text, pool)
        candidates, scores_NQ = self._gathered(pool, digest) if self._ranks > 1 else pool.end()
        return self._choose(candidates, scores_NQ, tokens)

    def _read(self, text: Iterator[Tensor], pool: _Pool) -> tuple[int, str]:
        """Put this process's share of the segments into `pool`. Tokens of the text, and its digest if it is shared."""
        s, tokens, digest = self._settings, 0, hashlib.sha256()
        waiting: tuple[Batch, OnItsWay] | None = None

        def settle(batch: Batch, scored: OnItsWay) -> None:
            score_NQ = scored.wait()
            if self._store is not None and (key := _key(batch)) not in self._store:
                self._store.put(key, _packed(score_NQ))
            pool.add(batch, score_NQ)
            if self._progress is not None:
                self._progress(batch.starts[-1] + batch.ids_NS.shape[1])

        try:
            for i, batch in enumerate(batches(text, s.segment, s.overlap, self._scorer.rows(s.segment))):
                tokens = batch.starts[-1] + batch.ids_NS.shape[1]
                if self._ranks > 1:
                    digest.update(batch.ids_NS.cpu().numpy().tobytes())
                if i % self._ranks != self._rank:
                    continue
                kept = None if self._store is None else self._store.get(_key(batch))
                score_NQ = self._scorer(batch.ids_NS) if kept is None else _unpacked(kept, len(batch.starts))
                # the GPU has its next batch before this one's scores are waited for
                if waiting is not None:
                    settle(*waiting)
                waiting = batch, OnItsWay(score_NQ)
        finally:
            # however the text ended, what was scored is kept
            if waiting is not None:
                settle(*waiting)
        return tokens, digest.hexdigest()

    def _choose(self, candidates: list[Candidate], scores_NQ: Tensor, tokens: int) -> tuple[list[int], Selection]:
        ranking_N = self._ranking(scores_NQ, scores_NQ)
        limit = threshold(ranking_N, self._settings.keep)
        ranked = sorted(dataclasses.replace(c, score=float(ranking_N[c.number])) for c in candidates)
        chosen = choose(ranked, limit, self._room)
        scores = _scores(scores_NQ, scores_NQ)
        kept = tuple(
            Kept(c.number, c.start, c.start + len(c.ids), **{name: float(s[c.number]) for name, s in scores.items()})
            for c in chosen
        )
        shown = -limit if self._settings.score == "gain" else limit
        return splice(chosen), Selection(kept, tuple(spans(chosen)), tokens, shown, scores)

    def _ranking(self, score_NQ: Tensor, known_NQ: Tensor) -> Tensor:
        """One number for each of some segments, lower is better, given the scores of all segments that are known."""
        score_N = _scores(score_NQ, known_NQ)[self._settings.score]
        return -score_N if self._settings.score == "gain" else score_N

    def _gathered(self, pool: _Pool, digest: str) -> tuple[list[Candidate], Tensor]:
        """The findings of all processes, the same on each."""
        from accelerate.utils import gather_object

        pool.end()
        found = gather_object([(pool.best.found, pool.scores, digest)])
        if len({digest for _, _, digest in found}) > 1:
            raise ValueError("accelerator: the processes were called with different texts. Give each the same.")
        scores = sorted(itertools.chain(*(scores for _, scores, _ in found)), key=lambda pair: pair[0])
        return list(itertools.chain(*(best for best, _, _ in found))), torch.cat([score for _, score in scores])

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
                "segment": s.segment, "overlap": s.overlap, "compiled": self._compile,
            },
            other="another file of scores",
        )  # fmt: skip


class _Pool:
    """Scores of every segment that was read, and the ids of those that may be kept.

    What is usual for the question is known only at the end, so more segments are held than there is room for: those
    that stand out from the first `FIRST`.
    """

    def __init__(self, most: int, ranking: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.best = Best(most)
        self.scores: list[tuple[int, Tensor]] = []  # number of the first segment, (N, Q)
        self._ranking = ranking
        self._early: list[tuple[Batch, Tensor]] = []
        self._known_NQ: Tensor | None = None

    def add(self, batch: Batch, score_NQ: Tensor) -> None:
        self.scores.append((batch.first, score_NQ))
        self._early.append((batch, score_NQ))
        if self._known_NQ is not None or sum(len(score) for _, score in self._early) >= FIRST:
            self._rank()

    def end(self) -> tuple[list[Candidate], Tensor]:
        self._rank()
        return self.best.found, torch.cat([score for _, score in self.scores])

    def _rank(self) -> None:
        if self._known_NQ is None and self._early:
            self._known_NQ = torch.cat([score for _, score in self._early])[:FIRST]
        for batch, score_NQ in self._early:
            assert self._known_NQ is not None
            ranking_N = self._ranking(score_NQ, self._known_NQ)
            self.best.add(ranking_N, batch.first, batch.starts, batch.ids_NS)
        self._early = []


def _scores(score_NQ: Tensor, known_NQ: Tensor) -> dict[str, Tensor]:
    """The scores of some segments by name, given those of all that are known."""
    nll_NQ, usual_Q = score_NQ[:, :-1], known_NQ[:, :-1].median(0).values
    return {"gain": gain(nll_NQ, usual_Q), "question_nll": nll_NQ.mean(-1), "entropy": score_NQ[:, -1]}


def _packed(score_NQ: Tensor) -> str:
    return base64.b64encode(score_NQ.numpy().astype("<f4").tobytes()).decode()


def _unpacked(packed: str, rows: int) -> Tensor:
    return torch.from_numpy(numpy.frombuffer(base64.b64decode(packed), dtype="<f4").copy()).view(rows, -1)


def _key(batch: Batch) -> list[int | str]:
    """Place and contents: scores of a text that was changed since are not taken."""
    return [batch.first, len(batch.starts), hashlib.sha256(batch.ids_NS.cpu().numpy().tobytes()).hexdigest()[:16]]
