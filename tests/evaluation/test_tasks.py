"""Generated samples: exact lengths, answers inside, the same from the same seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation import catalogue
from hf_longctx.evaluation.catalogue import RULER, make_task, samples, task_names
from hf_longctx.evaluation.haystack import Haystack
from hf_longctx.evaluation.sample import Sample, encode, encode_parts, shorten
from hf_longctx.storage.fingerprint import tokenizer_digest
from hf_longctx.text.corpora import load_text
from tests.evaluation.conftest import byte_tokenizer

pytest.importorskip("wonderwords")
MADE = tuple(name for name in task_names() if not name.startswith("qa_"))
LENGTH = 3000  # bytes
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Paragraph {i} says that the river is {'long ' * i}.",
                    "qas": [
                        {"question": f"How is river {i}?", "answers": [{"text": f"way {i}"}, {"text": "long"}]},
                        {"question": "Unknown?", "answers": [], "is_impossible": True},
                    ],
                }
                for i in range(1, 9)
            ]
        }
    ]
}
HOTPOT = [
    {"question": "Who?", "answer": "She", "context": [["One", ["A. ", "B."]], ["Two", ["C."]]]},
    {"question": "What?", "answer": "It", "context": [["Three", ["D."]], ["Two", ["C."]]]},
]


@pytest.fixture(scope="module")
def text() -> Haystack:
    return Haystack.of(load_text("python-docs")[:30_000])


@pytest.fixture(scope="module")
def chat() -> Any:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("kind", ["plain", "bos", "chat"])
def test_prompt_and_answer_have_exactly_the_length(
    name: str, kind: str, tokenizer: Any, bos_tokenizer: Any, chat: Any, text: Haystack
) -> None:
    used = {"plain": tokenizer, "bos": bos_tokenizer, "chat": chat}[kind]
    for sample in samples(name, used, LENGTH, 3, haystack=text):
        ids = encode(used, sample)
        assert len(ids) + sample.max_new_tokens == LENGTH == sample.length
        head, context, question = encode_parts(used, sample)
        assert head + context + question == ids  # one byte a token: no seams
        assert (used.bos_token_id in ids) == (kind == "bos")
        assert used.decode(ids).endswith(sample.answer_prefix.strip())


@pytest.mark.parametrize("name", MADE)
def test_answers_are_in_the_document_and_the_same_seed_gives_them_again(
    name: str, tokenizer: Any, text: Haystack
) -> None:
    made = samples(name, tokenizer, LENGTH, 3, seed=4, haystack=text)
    assert made == samples(name, tokenizer, LENGTH, 3, seed=4, haystack=text)
    # the first ones of more are the same
    assert made[:1] == samples(name, tokenizer, LENGTH, 1, seed=4, haystack=text)
    assert made[0].context != made[1].context != samples(name, tokenizer, LENGTH, 2, seed=5, haystack=text)[1].context
    assert len({sample.id for sample in made}) == 3
    for sample in made:
        assert sample.answers
        assert all(answer in sample.context for answer in sample.answers)
        assert not any(answer in sample.question + sample.answer_prefix for answer in sample.answers)


@pytest.mark.parametrize("name", ["passkey", "number", "niah", "kv", "lines", "niah_single_1", "niah_single_2"])
def test_the_answer_is_where_it_was_asked_for(name: str, tokenizer: Any, text: Haystack) -> None:
    for depth in (0.0, 0.5, 1.0):
        for sample in samples(name, tokenizer, 6000, 2, depth=depth, haystack=text):
            at = sample.context.index(sample.answers[0]) / len(sample.context)
            assert abs(at - depth) < 0.15, (depth, at)
            assert sample.depth == pytest.approx(depth, abs=0.05)


def test_rulers_tasks_are_what_they_are_called(tokenizer: Any, text: Haystack) -> None:
    assert len(RULER) == 11

    def one(name: str) -> Sample:
        return samples(name, tokenizer, LENGTH, 1, haystack=text)[0]

    keys = one("niah_multikey_1")
    assert keys.context.count("One of the special magic numbers for ") == 4
    assert len(keys.answers) == 1
    assert one("niah_multikey_2").context.count("One of the special magic numbers") > 20
    assert len(one("niah_multivalue").answers) == len(one("niah_multiquery").answers) == 4
    assert ", and " in one("niah_multiquery").question
    assert "A special magic number is hidden" in one("niah_single_1").instruction
    assert "Some special magic numbers are hidden" in one("niah_multivalue").instruction
    chain = one("vt")
    assert f"VAR {chain.answers[0]} = {chain.meta['value']}" in chain.context
    assert all(f"VAR {b} = VAR {a}" in chain.context for a, b in zip(chain.answers, chain.answers[1:], strict=False))
    words = samples("cwe", tokenizer, 20_000, 1)[0]
    counts = {word: words.context.split().count(word) for word in set(words.context.split())}
    assert {counts[answer] for answer in words.answers} == {30}
    assert max(count for word, count in counts.items() if word not in words.answers and "." not in word) == 3
    coded = samples("fwe", tokenizer, 20_000, 1)[0]
    many = sorted((coded.context.split().count(word), word) for word in set(coded.context.split()) if "." not in word)
    assert [word for _, word in many[-1:-4:-1]] == list(coded.answers)
    assert many[-3][0] > many[-4][0]


@pytest.mark.parametrize(("name", "data"), [("qa_1", SQUAD), ("qa_2", HOTPOT)])
def test_question_answering_reads_a_file(name: str, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))
    for sample in samples(f"{name}:{path}", tokenizer, 2000, 4):
        assert len(encode(tokenizer, sample)) + sample.max_new_tokens == 2000
        assert "Document 1:\n" in sample.context
        assert sample.task == name
    with pytest.raises(ValueError, match=f"made of a file that you have.*{name}:FILE"):
        make_task(name)
    path.write_text(json.dumps({"data": [{"paragraphs": [{}]}]}))
    with pytest.raises(ValueError, match=f"{name} reads .* and this is not it"):
        make_task(f"{name}:{path}")
    path.write_text("[]" if name == "qa_2" else '{"data": []}')
    with pytest.raises(ValueError, match="holds no question"):
        make_task(f"{name}:{path}")


def test_any_length_down_to_what_a_task_takes(tokenizer: Any) -> None:
    for length in (500, 501, 700, 5000):
        (sample,) = samples("niah_single_1", tokenizer, length + 128, 1)
        assert len(encode(tokenizer, sample)) == length
    with pytest.raises(ValueError, match=r"length=300: niah_single_1 takes more tokens.*larger length"):
        samples("niah_single_1", tokenizer, 300, 1)
    with pytest.raises(ValueError, match=r"depth=2: expected 0"):
        samples("kv", tokenizer, 3000, 1, depth=2)
    with pytest.raises(ValueError, match="words of cwe are everywhere"):
        samples("cwe", tokenizer, 3000, 1, depth=0.5)
    with pytest.raises(ValueError, match="at least one sample"):
        samples("kv", tokenizer, 3000, 0)
    with pytest.raises(ValueError, match="Did you mean niah_single_1"):
        samples("niah_singel_1", tokenizer, 3000, 1)
    with pytest.raises(ValueError, match="haystack is empty"):
        samples("niah", tokenizer, 3000, 1, haystack="  ")


def test_samples_are_kept_by_tokenizer(
    tokenizer: Any, bos_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = samples("kv", tokenizer, LENGTH, 2, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(catalogue, "make_task", lambda name, text: pytest.fail("not from the cache") if name else None)
    task = make_task("kv")
    monkeypatch.setattr(type(task), "samples", lambda *args, **kwargs: pytest.fail("made anew"))
    assert samples(task, tokenizer, LENGTH, 2, cache=tmp_path) == made
    monkeypatch.undo()
    assert samples("kv", bos_tokenizer, LENGTH, 2, cache=tmp_path) != made
    samples("kv", tokenizer, LENGTH, 2, seed=1, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert tokenizer_digest(tokenizer) != tokenizer_digest(bos_tokenizer)


def test_a_long_prompt_is_cut_where_its_benchmark_says(chat: Any) -> None:
    parts: dict[str, Any] = {"instruction": "I" * 20, "context": "abcdefghij" * 10, "question": "Q" * 10}
    made = {
        cut: Sample(id="1", task="t", answers=("x",), max_new_tokens=4, metric="qa_f1", cut=cut, **parts)
        for cut in ("middle", "document", "left")
    }
    for sample in made.values():
        assert len(encode(chat, sample)) == len(f"<user>{sample.user}</><assistant>")
    text = {cut: chat.decode(encode(chat, sample, 100)) for cut, sample in made.items()}
    assert all(len(some) == 100 for some in text.values())
    assert all(some.startswith("<user>") and some.endswith("</><assistant>") for some in text.values())
    assert text["document"] == f"<user>{'I' * 20}{('abcdefghij' * 5)}{'Q' * 10}</><assistant>"
    assert text["left"] == f"<user>{('abcdefghij' * 7)}{'Q' * 10}</><assistant>"
    assert text["middle"] == f"<user>{'I' * 20}{'abcdefghij' * 2}{'abcdefghij' * 3}{'Q' * 10}</><assistant>"
    with pytest.raises(ValueError, match="around the text take 50 tokens, and there is room for 40"):
        encode(chat, made["document"], 40)
    with pytest.raises(ValueError, match="expected one of middle, document, left"):
        Sample(id="1", task="t", answers=(), max_new_tokens=4, metric="qa_f1", cut="right", **parts)


def test_what_is_cut_out() -> None:
    ids = list(range(10))
    assert shorten(ids, 5, "middle") == [0, 1, 7, 8, 9]
    assert shorten(ids, 1, "middle") == [9]
    assert shorten(ids, 3, "left") == [7, 8, 9]
    assert shorten(ids, 3, "document") == [0, 1, 2]
    assert shorten(ids, 10, "middle") == ids


def test_words_need_their_package(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.evaluation.words import word_list

    word_list.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[evaluation\]'"):
        samples("niah_single_1", tokenizer, 3000, 1)
    assert samples("passkey", tokenizer, 3000, 1)
