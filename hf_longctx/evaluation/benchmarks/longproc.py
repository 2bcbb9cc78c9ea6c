"""LongProc (Ye et al. 2025, https://arxiv.org/abs/2501.05414): procedures written out, scored by rule.

Files are those of its repository, `data/TASK/TASK_SIZE.json`, with the task's `prompts.yaml` beside them. Where the
official code evaluates or runs what a model wrote, nothing is run here: countdown's equations are parsed, and
pseudo_to_code is refused. Decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...near import did_you_mean
from ..longproc import belief, countdown, route, table
from ..records import Record, records, whole_text
from ..sample import Sample
from ..scoring import Metric, best, meta

TOKENS = {"0.5k": 1024, "2k": 3072, "8k": 9216}  # that may be written: half as many again as its longest answers have
REFUSED = {
    "pseudo_to_code": "its score compiles and runs what the model wrote, which is not done here",
    "travel_planning": "its share of a search needs the benchmark's own code",
}


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file such as `path_traversal_2k.json`; errors name the item and key of what is wrong.

    Raises:
        FileNotFoundError: The file, `prompts.yaml` beside it, or a page of html_to_tsv is missing.
        ValueError: The file's name is no task and size, the task is refused, or the file is not in its format.
    """
    path = Path(path).expanduser()
    task, _, size = path.stem.rpartition("_")
    if task in REFUSED:
        raise ValueError(f"{path}: {task} of LongProc is not scored, for {REFUSED[task]}. Take another of its tasks.")
    if task not in _READ or size not in TOKENS:
        raise ValueError(
            f"{path}: expected a task and a size of LongProc in the name, as path_traversal_2k.json. "
            f"{did_you_mean(task, _READ)}There are: {', '.join(_READ)}; {', '.join(TOKENS)}."
        )
    found = list(records(path))
    template = _template(path.parent / "prompts.yaml")
    for record in found:
        blanks, answer, about = _READ[task](record)
        try:
            prompt = template.format(**blanks)
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"{path.parent / 'prompts.yaml'}: not the prompt of {task} ({error!r}).") from None
        given: dict[str, Any] = {"max_new_tokens": TOKENS[size], "metric": f"longproc_{task}", "meta": about}
        yield record.sample(id=str(record.line), task=path.stem, context=prompt, answers=(answer,), **given)


def _template(path: Path) -> str:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        found = yaml.safe_load(whole_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(found, dict) or not isinstance(found.get("USER_PROMPT"), str):
        raise ValueError(f"{path}: expected a text USER_PROMPT. Give the file that LongProc has beside its data.")
    return str(found["USER_PROMPT"])


_Item = tuple[dict[str, Any], str, dict[str, Any]]  # what fills the prompt, the answer, and what the score needs


def _route(record: Record) -> _Item:
    cities = record.texts("question_repr")
    if len(cities) != 2:
        raise record.wrong(f"the key 'question_repr' has {len(cities)} cities; expected the first and the last one.")
    told = {"city_context": record.text("context_nl"), "src_city": cities[0], "dst_city": cities[1]}
    return told, record.text("answer_nl"), {}


def _belief(record: Record) -> _Item:
    told = {key: record.text(key) for key in ("story_components", "story", "question")}
    return told, record.text("solution"), {}


def _table(record: Record) -> _Item:
    keys = ("task_topic", "task_description", "tsv_header", "filtering_instruction")
    page = record.path.parent / "webpage" / Path(record.text("html_path")).name
    return {**{key: record.text(key) for key in keys}, "html_str": whole_text(page)}, record.text("gt"), {}


def _countdown(record: Record) -> _Item:
    numbers, target = record.many("nums"), record.number("target")
    if len(numbers) != 4 or not all(type(number) is int and number > 0 for number in numbers):
        raise record.wrong(f"the key 'nums' is {numbers!r:.60}; expected four whole numbers above 0.")
    try:
        lines, _ = countdown.search(numbers, target)
    except ValueError as error:
        raise record.wrong(str(error)) from None
    # the demonstration in the file is headed otherwise than the prompt asks for
    blanks = {"nums": numbers, "target": target, "demonstration": countdown.examples()}
    return blanks, "\n".join([countdown.HEAD, *lines]), {"nums": numbers, "target": target}


_READ: dict[str, Callable[[Record], _Item]] = {
    "path_traversal": _route,
    "tom_tracking": _belief,
    "html_to_tsv": _table,
    "countdown": _countdown,
}


def _of_numbers(score: Callable[[str, list[int], int], float]) -> Metric:
    def needs(sample: Sample) -> None:
        numbers = meta(sample, "nums")
        if not isinstance(numbers, list) or len(numbers) != 4 or type(meta(sample, "target")) is not int:
            raise ValueError(f"nums={numbers!r:.60}: {sample.metric} needs four numbers, and a target.")

    return Metric(lambda text, sample: score(text, meta(sample, "nums"), meta(sample, "target")), needs=needs)


METRICS = {
    "longproc_path_traversal": Metric(best(route.whole_route)),
    "longproc_path_traversal_partial": Metric(best(route.begun_route)),
    "longproc_tom_tracking": Metric(best(belief.all_beliefs), shape=(belief.steps, 'lines "- Step 0: ..."')),
    "longproc_tom_tracking_partial": Metric(best(belief.first_beliefs), shape=(belief.steps, 'lines "- Step 0: ..."')),
    "longproc_html_to_tsv": Metric(best(table.row_f1)),
    "longproc_countdown": _of_numbers(countdown.solved),
    "longproc_countdown_partial": _of_numbers(countdown.searched),
}
