"""Scores of a model: unseen problems, answered greedily, and writing of an asked length, sampled.

    python -m recipes.long_writer.score --model long-writer/sft/model --out scores.json

See README.md beside this file. Values are kept for each prompt, so that two models are compared prompt by prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hf_longctx.evaluation.results import environment, write_results
from hf_longctx.evaluation.tasks.long_output import problems, verify
from hf_longctx.evaluation.tasks.long_output.measured import ROOM
from hf_longctx.evaluation.writing import repeated_ngrams, writing_score
from hf_longctx.hub import load
from hf_longctx.storage.files import write_json_lines
from hf_longctx.text.tokens import CHAT_TEMPLATES
from hf_longctx.upstream.installing import check_packages
from recipes.clock import sooner
from recipes.long_writer.batching import FIXED, cost
from recipes.long_writer.command import parser, settings
from recipes.long_writer.data import WORDS, asked, parts, prompts_ids, texts_ids
from recipes.long_writer.decode import Sampling, Written, write
from recipes.long_writer.examples import examples
from recipes.long_writer.pairs import end_ids, room, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recipes.long_writer.progress import Sizes

NEEDS = packages = (CHAT_TEMPLATES,)  # of scores, and of this command
SPARE = 64  # tokens beyond twice the right answer
LOSS_ROWS = 64  # held-back answers whose loss is measured
TRIED = ", longer than a call"  # what is kept of a size for which a call was too short
Cell = dict[str, Any]


class Prompt(NamedTuple):
    """What is to be answered: of a kind, what is asked for, as tokens, and the most tokens of its answer."""

    kind: str
    asked: Any
    prompt: list[int]
    limit: int


@dataclass
class Todo:
    """The prompts of a size, and those that the context has no room for."""

    prompts: list[Prompt] = field(default_factory=list)
    no_room: list[str] = field(default_factory=list)


class NoTimeError(Exception):
    """What a call has time for is measured; the rest is for another one."""


class _TooLongError(Exception):
    """A size took longer than it may."""


class Scores:
    """Measures a model, one size at a time, the shortest first.

    Args:
        model: Gives the model, in eval mode, on its device, and its tokenizer; called when something is to be measured.
        config: The recipe's.
        until: `time.monotonic()` at which it has to be done; what would take longer is listed as not measured.
        last: At which a size that was begun is ended, and listed as not measured: the first one is begun without a
            measure of how long it takes.
        stop: At which no size is written any longer; what would take longer is for another call.
        half: Before which a size is begun however long it may take: another call is no longer. One that is not measured
            then is listed as not measured.
        banned: The end token is never written.
        into: An empty dictionary that takes the scores.
        kept: Called after each size.
        sizes: Those that were measured before.
        texts: A file that takes a few whole answers of each cell; None: none are kept.
    """

    def __init__(
        self,
        model: Callable[[], tuple[Any, PreTrainedTokenizerBase]],
        config: dict[str, Any],
        *,
        until: float | None = None,
        last: float | None = None,
        stop: float | None = None,
        half: float | None = None,
        banned: bool = False,
        into: dict[str, Any] | None = None,
        kept: Callable[[], None] | None = None,
        sizes: Sizes | None = None,
        texts: Path | None = None,
    ) -> None:
        self._give, self.config, self.until, self.stop, self._ban = model, config, until, stop, banned
        self.half, self.last = half, last
        # seconds a token, of the last size of each kind: those before it are shorter, and have more of what every step
        # takes
        self.paces: dict[str, float] = {}
        self.found: dict[str, Any] = {} if into is None else into
        self.found |= {"tasks": [], "writing": [], "not measured": [], "no room": []}
        self.kept, self.sizes, self.texts = kept, sizes, texts
        self.examples: list[dict[str, Any]] = []

    @cached_property
    def _loaded(self) -> tuple[Any, PreTrainedTokenizerBase]:
        return self._give()

    @property
    def model(self) -> Any:
        """The model that is measured."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._loaded[1]

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        return end_ids(*self._loaded)

    def all(self) -> dict[str, Any]:
        """Every size there is time for.

        Raises:
            NoTimeError: There is time for more, in another call.
        """
        own = self.config["score"]
        rows = [row for _, row in asked([own["writing"]])] if own["writing"] else []
        loss = self._run("loss", lambda: {"loss": self.loss(rows[:LOSS_ROWS])}) if rows else {"loss": None}
        self.found["loss on held-back answers"] = loss["loss"]
        lengths = sorted({row[WORDS] for row in rows if (own["shortest"] or 0) <= row[WORDS] <= own["longest"]})
        sizes = [(tokens, "tasks", tokens) for tokens in own["tokens"]]
        sizes += [(room(self.config, words) // ROOM, "writing", words) for words in lengths]
        for _, what, size in sorted(sizes):
            name = f"{what} {size}"
            if self.sizes is not None and f"{name}{TRIED}" in self.sizes:
                self.found["not measured"].append(name)
                continue
            if self.sizes is not None and name in self.sizes:
                todo = Todo()
            else:
                todo = self._task_prompts(size) if what == "tasks" else self._writing(size, rows)
                if not self._in_time(what, todo):
                    self.found["not measured"].append(name)
                    continue
            try:
                found = self._run(name, partial(self._size, what, size, todo))
            except _TooLongError:
                self.found["not measured"].append(name)
                continue
            self.found[what] += found["cells"]
            self.found["no room"] += found["no room"]
            self.examples += found.get("examples", [])
            if found.get("fixed") == FIXED:  # else it was kept when costs were counted in another way
                self.paces[what] = found["seconds"] / max(found["cost"], 1)
            if self.texts is not None:
                self.texts.parent.mkdir(parents=True, exist_ok=True)
                write_json_lines(self.texts, self.examples)
            if self.kept is not None:
                self.kept()
        return self.found

    def _run(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return measure() if self.sizes is None else self.sizes.run(name, measure)

    def _in_time(self, what: str, todo: Todo) -> bool:
        """Is there time for a size, by how long those before it took?"""
        pace = self.paces.get(what, max(self.paces.values(), default=0.0))
        done = time.monotonic() + pace * self._cost(todo)
        if self.until is not None and done > self.until:
            return False
        if self.stop is not None and done > self.stop and not self._early():
            raise NoTimeError
        return True

    @property
    def _ends(self) -> float | None:
        """At which nothing is written any more."""
        return sooner(self.last, self.stop)

    def _early(self) -> bool:
        return self.half is not None and time.monotonic() < self.half

    def _cost(self, todo: Todo) -> float:
        at_once = self.config["score"]["tokens_at_once"]
        return cost([len(one.prompt) for one in todo.prompts], [one.limit for one in todo.prompts], at_once)

    def _size(self, what: str, size: int, todo: Todo) -> dict[str, Any]:
        begun, early = time.monotonic(), self._early()
        try:
            cells, shown = self.tasks(size, todo) if what == "tasks" else self.writing(size, todo)
        except TimeoutError as error:
            if self._ends != self.stop:
                raise _TooLongError from error
            if early and self.sizes is not None:
                self.sizes.run(f"{what} {size}{TRIED}", dict)
            raise NoTimeError from error
        took = {"cost": self._cost(todo), "fixed": FIXED, "seconds": time.monotonic() - begun}
        return {"cells": cells, "examples": shown, "no room": todo.no_room, **took}

    def _task_prompts(self, tokens: int) -> Todo:
        own, found = self.config["score"], Todo()
        how = {"seed": self.config["seed"], "split": "test"}
        some = [one for task in own["tasks"] for one in problems([task], tokens, own["problems"], **how)]
        prompts = prompts_ids(self.tokenizer, ([{"role": "user", "content": one.prompt}] for one in some))
        answers = texts_ids(self.tokenizer, [one.answer for one in some])
        for problem, prompt, answer in zip(some, prompts, answers, strict=True):
            left = self.config["context"] - len(prompt)
            # with its end token
            if len(answer) + 1 > left:
                found.no_room.append(f"{problem.task} of {tokens} tokens")
            else:
                found.prompts.append(Prompt(problem.task, problem, prompt, min(ROOM * tokens + SPARE, left)))
        return found

    def tasks(self, tokens: int, todo: Todo) -> tuple[list[Cell], list[Cell]]:
        """Each task: whether answers are exact, and the share that is right before the first wrong line; some whole."""
        cells, shown = [], list[Cell]()
        for task, some in self._answered(todo, None):
            texts = [text_of(self.tokenizer, answer) for _, answer in some]
            verdicts = [verify(problem, text) for (problem, _), text in zip(some, texts, strict=True)]
            values = {name: [float(getattr(one, name)) for one in verdicts] for name in ("exact", "share", "frame")}
            ended = [float(answer.ended) for _, answer in some]
            kind = {"task": task, "tokens": tokens}
            cells.append({**kind, **values, "ended": ended})
            shown += examples(kind, [problem.prompt for problem, _ in some], texts, ended, share=values["share"])
        return cells, shown

    def _writing(self, words: int, rows: list[dict[str, Any]]) -> Todo:
        own, found = self.config["score"], Todo()
        for form, every in _by_form(row for row in rows if row[WORDS] == words):
            some = every[: own["prompts"]]
            prompts = prompts_ids(self.tokenizer, (row["messages"][:-1] for row in some))
            for row, prompt in zip(some, prompts, strict=True):
                if len(prompt) + room(self.config, words) > self.config["context"]:
                    found.no_room.append(f"{form} of {words} words")
                else:
                    found.prompts.append(Prompt(form, row, prompt, room(self.config, words)))
        return found

    def writing(self, words: int, todo: Todo) -> tuple[list[Cell], list[Cell]]:
        """Each form: the scores of `writing_score`, and how much the text itself repeats; some answers whole."""
        own, cells, shown = self.config["score"], [], list[Cell]()
        for form, some in self._answered(todo, (own["temperature"], own["top_p"])):
            texts = [text_of(self.tokenizer, answer) for _, answer in some]
            scores = [self._scored(row, text, answer.ended) for (row, answer), text in zip(some, texts, strict=True)]
            values = {name: [score[name] for score in scores] for name in scores[0] if scores[0][name] is not None}
            text = [repeated_ngrams(row["messages"][-1]["content"]) for row, _ in some]
            ended = [float(answer.ended) for _, answer in some]
            kind, asked_for = {"asked": words, "form": form}, [row["messages"][-2]["content"] for row, _ in some]
            cells.append({**kind, **values, "ended": ended, "text repeated": text})
            told = {name: values[name] for name in ("words", "repeated")}
            shown += examples(kind, asked_for, texts, ended, **told)
        return cells, shown

    @torch.no_grad()
    def loss(self, rows: list[dict[str, Any]]) -> float:
        """The mean negative log-likelihood of the tokens of held-back answers that fit into the context."""
        total = tokens = 0.0
        for row in rows:
            prompt, answer = parts(self.tokenizer, row)
            if len(prompt) + len(answer) > self.config["context"]:
                continue
            ids = torch.tensor([prompt + answer], device=self.model.device)
            logits = self.model(ids[:, :-1], use_cache=False, logits_to_keep=len(answer)).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, -len(answer) :], reduction="sum"))
            tokens += len(answer)
        return total / max(tokens, 1)

    @staticmethod
    def _scored(row: dict[str, Any], text: str, ended: bool) -> dict[str, Any]:
        prompt, counted = row["messages"][-2]["content"], row.get("parts")
        return asdict(writing_score(text, row[WORDS], ended=ended, prompt=prompt, parts=counted))

    def _answered(self, todo: Todo, warm: tuple[float, float] | None) -> list[tuple[str, list[tuple[Any, Written]]]]:
        """What was asked for with its answer, by kind."""
        temperature, top_p = warm or (0.0, 1.0)
        sampling = Sampling(temperature, top_p, self.config["seed"], tuple(sorted(self.ends)) if self._ban else ())
        written = write(
            self.model,
            [one.prompt for one in todo.prompts],
            [one.limit for one in todo.prompts],
            self.ends,
            sampling,
            tokens_at_once=self.config["score"]["tokens_at_once"],
            until=self._ends,
        )
        found: dict[str, list[tuple[Any, Written]]] = {}
        for one, answer in zip(todo.prompts, written, strict=True):
            found.setdefault(one.kind, []).append((one.asked, answer))
        return list(found.items())


def _by_form(rows: Iterator[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row.get("form", "plain")), []).append(row)
    return list(found.items())


def main() -> None:
    """The command; see the module's docstring."""
    found = parser(__doc__, file="scores.json")
    found.add_argument("--writing", help="a file of rows that are held back, in place of the config's")
    args = found.parse_args()
    file, args.out = args.out, None
    config = settings(args)
    config["score"]["writing"] = args.writing or config["score"]["writing"]
    check_packages(NEEDS)
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    model, tokenizer = load(config["model"], dtype=config["save_dtype"] if torch.cuda.is_available() else "auto")
    scores: dict[str, Any] = {}

    def keep() -> None:
        """What was measured by now stays where a later size fails."""
        write_results(file, {"model": str(config["model"]), "scores": scores, **environment()})

    texts = file.with_suffix(".texts.jsonl")
    Scores(lambda: (model, tokenizer), config, until=until, last=until, into=scores, kept=keep, texts=texts).all()
    keep()
    left = f"; not measured: {', '.join(scores['not measured'])}" if scores["not measured"] else ""
    print(f"{file}: {len(scores['tasks'])} cells of tasks, {len(scores['writing'])} of writing{left}")


if __name__ == "__main__":
    main()
