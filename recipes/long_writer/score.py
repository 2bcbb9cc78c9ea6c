"""Scores of a model: unseen problems, answered greedily, and writing of an asked length, sampled.

    python -m recipes.long_writer.score --model long-writer/sft/model --out scores.json

See README.md beside this file. Values are kept for each prompt, so that two models are compared prompt by prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_longctx.evaluation.results import environment, write_results
from hf_longctx.evaluation.tasks.long_output import problems, verify
from hf_longctx.evaluation.tasks.long_output.measured import ROOM
from hf_longctx.evaluation.writing import repeated_ngrams, writing_score
from hf_longctx.hub import load
from recipes.long_writer.command import parser, settings
from recipes.long_writer.data import WORDS, asked, parts, prompt_ids
from recipes.long_writer.decode import Sampling, Written, write
from recipes.long_writer.pairs import end_ids, room, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPARE = 64  # tokens beyond twice the right answer
LOSS_ROWS = 64  # held-back answers whose loss is measured
Cell = dict[str, Any]


class Scores:
    """Measures a model, one size at a time, the shortest first.

    Args:
        model: In eval mode, on its device.
        tokenizer: Its own.
        config: The recipe's.
        until: `time.monotonic()` at which it has to be done; what would take longer is listed as not measured.
        banned: The end token is never written.
        into: An empty dictionary that takes the scores.
        kept: Called after each size.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: dict[str, Any],
        *,
        until: float | None = None,
        banned: bool = False,
        into: dict[str, Any] | None = None,
        kept: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config, self.until = model, tokenizer, config, until
        self.ends = end_ids(model, tokenizer)
        self.banned = tuple(sorted(self.ends)) if banned else ()
        self.per_step = 0.0  # seconds, of the slowest batch so far
        self.found: dict[str, Any] = {} if into is None else into
        self.found |= {"tasks": [], "writing": [], "not measured": [], "no room": []}
        self.kept = kept

    def all(self) -> dict[str, Any]:
        """Every size there is time for."""
        own = self.config["score"]
        rows = [row for _, row in asked([own["writing"]])] if own["writing"] else []
        self.found["loss on held-back answers"] = self.loss(rows[:LOSS_ROWS]) if rows else None
        lengths = sorted({row[WORDS] for row in rows if row[WORDS] <= own["longest"]})
        sizes = [(tokens, "tasks", tokens) for tokens in own["tokens"]]
        sizes += [(room(self.config, words) // ROOM, "writing", words) for words in lengths]
        for _, what, size in sorted(sizes):
            steps = ROOM * size + SPARE if what == "tasks" else room(self.config, size)
            if self.until is not None and time.monotonic() + steps * self.per_step > self.until:
                self.found["not measured"].append(f"{what} {size}")
                continue
            begun = time.monotonic()
            cells = self.tasks(size) if what == "tasks" else self.writing(size, rows)
            self.found[what] += cells
            if cells:
                self.per_step = max(self.per_step, (time.monotonic() - begun) / steps)
            if self.kept is not None:
                self.kept()
        return self.found

    def tasks(self, tokens: int) -> list[Cell]:
        """Each task: whether answers are exact, and the share that is right before the first wrong line."""
        own, cells, todo = self.config["score"], [], []
        for task in own["tasks"]:
            for problem in problems([task], tokens, own["problems"], seed=self.config["seed"], split="test"):
                messages = [{"role": "user", "content": problem.prompt}]
                prompt = prompt_ids(self.tokenizer, messages)
                right = len(self.tokenizer(problem.answer, add_special_tokens=False, verbose=False)["input_ids"]) + 1
                left = self.config["context"] - len(prompt)
                if right > left:
                    self.found["no room"].append(f"{task} of {tokens} tokens")
                else:
                    todo.append((problem, prompt, min(ROOM * tokens + SPARE, left)))
        written = self._write([one[1] for one in todo], [one[2] for one in todo], None)
        for task in own["tasks"]:
            some = [(one[0], answer) for one, answer in zip(todo, written, strict=True) if one[0].task == task]
            verdicts = [verify(problem, text_of(self.tokenizer, answer)) for problem, answer in some]
            values = {name: [float(getattr(one, name)) for one in verdicts] for name in ("exact", "share", "frame")}
            ended = [float(answer.ended) for _, answer in some]
            if some:
                cells.append({"task": task, "tokens": tokens, **values, "ended": ended})
        return cells

    def writing(self, words: int, rows: list[dict[str, Any]]) -> list[Cell]:
        """Each form: the scores of `writing_score`, and how much the text itself repeats."""
        own, cells, todo = self.config["score"], [], []
        for form, some in _by_form(row for row in rows if row[WORDS] == words):
            for row in some[: own["prompts"]]:
                prompt = prompt_ids(self.tokenizer, row["messages"][:-1])
                if len(prompt) + room(self.config, words) > self.config["context"]:
                    self.found["no room"].append(f"{form} of {words} words")
                else:
                    todo.append((form, row, prompt))
        sampling = (own["temperature"], own["top_p"])
        written = self._write([one[2] for one in todo], [room(self.config, words)] * len(todo), sampling)
        for form in dict.fromkeys(one[0] for one in todo):
            some = [(one[1], answer) for one, answer in zip(todo, written, strict=True) if one[0] == form]
            scores = [self._scored(row, answer) for row, answer in some]
            values = {name: [score[name] for score in scores] for name in scores[0] if scores[0][name] is not None}
            text = [repeated_ngrams(row["messages"][-1]["content"]) for row, _ in some]
            ended = [float(answer.ended) for _, answer in some]
            cells.append({"asked": words, "form": form, **values, "ended": ended, "text repeated": text})
        return cells

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

    def _scored(self, row: dict[str, Any], answer: Written) -> dict[str, Any]:
        prompt, counted = row["messages"][-2]["content"], row.get("parts")
        text = text_of(self.tokenizer, answer)
        return asdict(writing_score(text, row[WORDS], ended=answer.ended, prompt=prompt, parts=counted))

    def _write(self, prompts: list[list[int]], limits: list[int], warm: tuple[float, float] | None) -> list[Written]:
        if not prompts:
            return []
        temperature, top_p = warm or (0.0, 1.0)
        sampling = Sampling(temperature, top_p, self.config["seed"], self.banned)
        at_once = self.config["score"]["tokens_at_once"]
        return write(self.model, prompts, limits, self.ends, sampling, tokens_at_once=at_once)


def _by_form(rows: Iterator[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row.get("form", "plain")), []).append(row)
    return list(found.items())


def main() -> None:
    """The command; see the module's docstring."""
    found = parser(__doc__)
    found.add_argument("--writing", help="a file of rows that are held back, in place of the config's")
    args = found.parse_args()
    file, args.out = Path(args.out or "scores.json"), None
    config = settings(args)
    config["score"]["writing"] = args.writing or config["score"]["writing"]
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    model, tokenizer = load(config["model"], dtype=config["save_dtype"] if torch.cuda.is_available() else "auto")
    scores = Scores(model, tokenizer, config, until=until).all()
    write_results(file, {"model": str(config["model"]), "scores": scores, **environment()})
    print(f"{file}: {len(scores['tasks'])} cells of tasks, {len(scores['writing'])} of writing")


if __name__ == "__main__":
    main()
