"""LongBench (Bai et al. 2023, https://arxiv.org/abs/2308.14508): a task's file of JSON lines, LongBench-E's as well.

Prompts, answer lengths and scores are the official ones, by the record's `dataset`; a prompt that is too long loses its
middle. Few-shot and code tasks are never put into a chat template.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, best, cut_zh, meta, normalise, rouge, token_f1

_ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_EVERY_PUNCTUATION = str.maketrans("", "", string.punctuation + _ZH_PUNCTUATION)
_BRIEF = "Answer the question as concisely as you can, using a single phrase"
_ONLY = "Only give me the answer and do not output any other words."
_PASSAGES = (
    f"Answer the question based on the given passages. {_ONLY}\n\nThe following are given passages.\n{{context}}\n\n"
    f"Answer the question based on the given passages. {_ONLY}\n\nQuestion: {{input}}\nAnswer:"
)
_QASPER = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no",'
    ' or "unanswerable". Do not provide any explanation.'
)
# prompt, tokens of the answer, score
TASKS: dict[str, tuple[str, int, str]] = {
    "narrativeqa": (
        f"You are given a story, which can be either a novel or a movie script, and a question. {_BRIEF} if possible. "
        "Do not provide any explanation.\n\nStory: {context}\n\nNow, answer the question based on the story as "
        "concisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
        "Question: {input}\n\nAnswer:",
        128,
        "qa_f1",
    ),
    "qasper": (
        f"You are given a scientific article and a question. Answer the question {_QASPER}\n\nArticle: {{context}}\n\n "
        f"Answer the question based on the above article {_QASPER}\n\nQuestion: {{input}}\n\nAnswer:",
        128,
        "qa_f1",
    ),
    "multifieldqa_en": (
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the "
        "above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
        64,
        "qa_f1",
    ),
    "multifieldqa_zh": (
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何"
        "其他字词。\n\n问题：{input}\n回答：",
        64,
        "qa_f1_zh",
    ),
    "hotpotqa": (_PASSAGES, 32, "qa_f1"),
    "2wikimqa": (_PASSAGES, 32, "qa_f1"),
    "musique": (_PASSAGES, 32, "qa_f1"),
    "dureader": (
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        128,
        "rouge_l_zh",
    ),
    "gov_report": (
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{context}"
        "\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "qmsum": (
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript "
        "in one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        "rouge_l",
    ),
    "multi_news": (
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\nNow, write "
        "a one-page summary of all the news.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "vcsum": (
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
        512,
        "rouge_l_zh",
    ),
    "trec": (
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
        64,
        "classification",
    ),
    "triviaqa": (
        f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n{{context}}\n\n"
        "{input}",
        32,
        "qa_f1",
    ),
    "samsum": (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
        128,
        "rouge_l",
    ),
    "lsht": ("请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}", 64, "classification"),
    "passage_count": (
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other "
        "words, how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count of "
        "unique paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, "
        "3, and so on.\n\nThe final answer is: ",
        32,
        "count",
    ),
    "passage_retrieval_en": (
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract "
        "is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph "
        'that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer '
        "is: ",
        32,
        "retrieval",
    ),
    "passage_retrieval_zh": (
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n下面是一个摘要\n\n"
        '{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
        32,
        "retrieval",
    ),
    "lcc": ("Please complete the code given below. \n{context}Next line of code:\n", 64, "code_similarity"),
    "repobench-p": (
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
        64,
        "code_similarity",
    ),
}
NO_CHAT = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
KEYS = ("input", "context", "answers", "dataset", "_id")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file; ValueError names the line and key of what is wrong."""
    for record in records(path, KEYS):
        task = record.text("dataset").removesuffix("_e")
        if task not in TASKS:
            raise record.wrong(f"the dataset {task!r} is none of LongBench's: {', '.join(TASKS)}.")
        template, tokens, metric = TASKS[task]
        before, _, after = template.partition("{context}")
        classes = record.get("all_classes")
        if metric == "classification" and not classes:
            raise record.wrong(f"{task} needs 'all_classes', the names of the classes.")
        first = task in FIRST_LINE
        question = after.replace("{input}", record.text("input"))
        prompt = {"instruction": before, "context": record.text("context"), "question": question}
        common = {"max_new_tokens": tokens, "metric": metric, "chat": task not in NO_CHAT}
        meta = {"all_classes": classes, "first_line": first, "groups": _bucket(record.get("length"))}
        parts = {"answers": record.texts("answers"), "stop": ("\n",) if first else (), "meta": meta}
        yield record.sample(id=record.text("_id"), task=task, **prompt, **common, **parts)


def _bucket(length: object) -> list[str]:
    """LongBench-E's buckets of the length in words."""
    if not isinstance(length, int):
        return []
    return ["0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"]


def qa_f1(prediction: str, answer: str) -> float:
    """Token F1 of the normal forms."""
    return token_f1(normalise(prediction).split(), normalise(answer).split())


def qa_f1_zh(prediction: str, answer: str) -> float:
    """Token F1 of jieba's words without punctuation."""
    words = [
        ["".join(w.lower().translate(_EVERY_PUNCTUATION).split()) for w in cut_zh(t)] for t in (prediction, answer)
    ]
    return token_f1(*([word for word in some if word] for some in words))


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L F of the package `rouge` 1.0; 0 where it cannot tell (an empty prediction)."""
    return rouge(prediction, answer, "rouge-l", "f")


def rouge_l_zh(prediction: str, answer: str) -> float:
    """The same of jieba's words."""
    return rouge_l(" ".join(cut_zh(prediction)), " ".join(cut_zh(answer)))


def classification(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """1 over the number of class names in the prediction, if the answer is among them.

    The official code takes a name that is a part of the answer out of the list that it walks through, and so skips the
    name after it. That is kept: scores would not be the official ones without it.
    """
    found = [name for name in all_classes if name in prediction]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


def count(prediction: str, answer: str) -> float:
    """Share of the numbers in the prediction that are the answer."""
    return _share(prediction, answer)


def retrieval(prediction: str, answer: str) -> float:
    """The same for the number in "Paragraph N" or "段落N"."""
    number = paragraph(answer)
    if number is None:
        raise ValueError(f'the reference {answer!r:.60} is not "Paragraph N" or "段落N".')
    return _share(prediction, number)


def paragraph(answer: str) -> str | None:
    """N of "Paragraph N" or "段落N"; None for anything else."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    return None if found is None else found.group(1)


def code_similarity(prediction: str, answer: str) -> float:
    """Edit similarity of the first line without `, # or // to the reference.

    fuzzywuzzy's ratio without its optional C extension: difflib's, rounded to whole hundredths.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def _share(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return sum(found == number for found in numbers) / len(numbers) if numbers else 0.0


def _classification(prediction: str, sample: Sample) -> float:
    classes = meta(sample, "all_classes")
    return max(classification(prediction, answer, classes) for answer in sample.answers)


def _needs_classes(sample: Sample) -> None:
    classes = meta(sample, "all_classes")
    if not isinstance(classes, list | tuple) or not all(isinstance(one, str) for one in classes) or not classes:
        raise ValueError(f"all_classes={classes!r:.60}: {sample.metric} needs a list of the classes' names.")


METRICS = {
    "qa_f1": Metric(best(qa_f1)),
    "qa_f1_zh": Metric(best(qa_f1_zh)),
    "rouge_l": Metric(best(rouge_l)),
    "rouge_l_zh": Metric(best(rouge_l_zh)),
    "classification": Metric(_classification, needs=_needs_classes),
    "count": Metric(best(count)),
    "retrieval": Metric(best(retrieval), shape=(paragraph, '"Paragraph N" or "段落N"'), each=True),
    "code_similarity": Metric(best(code_similarity)),
}
