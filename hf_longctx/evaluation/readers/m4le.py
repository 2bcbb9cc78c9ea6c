"""M4LE (Kwan et al. 2023, https://arxiv.org/abs/2310.19240): 36 data sets in buckets of length.

Prompt, ends of answers and scores are the official ones by the file's stem. Answers may take 512 tokens where they are
texts and 64 elsewhere (the official code lets them grow to the bucket's length), and a prompt that is too long loses
its middle (the official code cuts none).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..tasks.sample import Sample
from .files import records

KEYS = ("instruction", "input", "answers")
_LINE, _SENTENCE, _ZH_SENTENCE = ("\n",), ("\n", "."), ("\n", "。")
# score, and where an answer ends
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("arxiv", "pubmed", "booksum", "cnnnews", "wikihow", "bigpatent_global_sum"), ("rouge_recall", _LINE)
    ),
    **dict.fromkeys(("cnewsum", "clts+"), ("rouge_recall_zh", ("\n", "新闻"))),
    **dict.fromkeys(("cepsum", "lcsts", "ncls", "news2016"), ("rouge_recall_zh", _LINE)),
    **dict.fromkeys(("triviaqa", "newsqa", "duorc", "nq-open", "hotpotqa"), ("contains", _SENTENCE)),
    **dict.fromkeys(("c3", "dureader", "drcd_semantic-single_qa"), ("contains", _ZH_SENTENCE)),
    **{f"{name}-zh2en": ("bleu", ()) for name in ("open-subtitles", "news-commentary", "tedtalks")},
    **{f"{name}-en2zh": ("bleu_zh", ()) for name in ("open-subtitles", "news-commentary", "tedtalks")},
    "wow": ("contains", (",", "\n")),
    "drcd_explicit-single_ret": ("contains", ("，", "\n")),
    "bigpatent_global_cls": ("contains", (":",)),
    "wikitext-103": ("same", (".",)),
    "wiki2019zh": ("same", ("。",)),
    "mnds-news_explicit-single_cls+ret": ("same", ()),
    "thucnews_explicit-single_cls+ret": ("same", ()),
    "mnds-news_semantic-multiple_cls+cnt": ("same", (".",)),
    "thucnews_semantic-multiple_cls+cnt": ("same", ("。",)),
    "marc": ("set_f1", ()),
    "mnds-news_explicit-multiple_cls+ret": ("set_f1", ()),
    "online-shopping": ("set_f1_zh", ()),
    "thucnews_explicit-multiple_cls+ret": ("set_f1_zh", ()),
}


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a data set's file; ValueError names the line and key of what is wrong."""
    task = Path(path).stem
    if task not in TASKS:
        raise ValueError(f"{path}: no data set of M4LE is called {task!r}. There are: {', '.join(sorted(TASKS))}.")
    metric, stop = TASKS[task]
    for record in records(path, KEYS):
        answers = record.texts("answers")
        if task.endswith("multiple_cls+cnt"):
            answers = tuple(answer.split(stop[0])[0] for answer in answers)
        bucket = record.get("length_bucket")
        yield record.checked(Sample(
            id=record.name("id"), task=task, instruction=record.text("instruction") + "\n",
            context=record.text("input"), question="", answers=answers, metric=metric, stop=stop,
            max_new_tokens=512 if metric.startswith(("rouge", "bleu")) else 64,
            meta={"groups": [] if bucket is None else [str(bucket)], "quoted": task == "news2016"},
        ))  # fmt: skip
