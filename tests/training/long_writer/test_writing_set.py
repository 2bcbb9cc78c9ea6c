"""The writing set of recipes/long_writer: sentences, cuts, wordings, counted parts, rows; and what it refuses."""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.benchmarks.longwriter import length_score, n_words
from hf_longctx.evaluation.writing import counted_parts
from hf_longctx.training.packing import read_chats
from recipes.long_writer.length_pairs import Sampled, length_pairs
from recipes.long_writer.parts import counted, parts_for
from recipes.long_writer.sentences import document_of
from recipes.long_writer.wordings import COUNTED, WORDINGS, Wording, drawn, spelled
from recipes.long_writer.writing_rows import training_rows
from recipes.long_writer.writing_set import main, make

ASKED = [200, 500, 1000]


def prose(seed: int, sentences: int) -> str:
    """Paragraphs of random words, with a heading and code here and there."""
    rng, found = random.Random(seed), []
    while sentences > 0:
        some = rng.randint(1, 6)
        lines = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 25))).capitalize() + "." for _ in range(some)]
        found += ["\n".join(lines)] + rng.choices([[], ["CHAPTER TWO"], ["x[1] = {2: (3, 4)};\n  y += 5;"]], [8, 1, 1])[
            0
        ]
        sentences -= some
    return "\n\n".join(found)


WORDS = ["".join(random.Random(i).choices("abcdefghij", k=5)) for i in range(2000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("documents")
    for seed, name in enumerate(("one", "two", "held", "other")):
        (place / f"{name}.txt").write_text(prose(seed, 900), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def rows(folder: Path) -> tuple[list[Any], list[Any]]:
    return make([folder], ["held", "other"], samples=400, beginnings=8, lengths=ASKED, most=3000)


def flat(text: str) -> str:
    """Without marks of parts, and with single spaces."""
    return " ".join(re.sub(r"\[\d+/\d+\] ", "", text).split())


def test_sentences_are_those_of_prose() -> None:
    document = document_of(
        'A Heading\n\nMr. Smith, of St. Ives, said "Go!" He\nwent away from there (see p. 135, J. Doe). '
        '"Why?" asked I.\n\n'
        "if (x[1] == 2) { y++; }\n\nA class with a friend is this one.\nclass Person\n{\n    friend none;\n};"
        "\n\nThe list of what he took with him is:\n\nNo part [1/2] of this. It has a "
        "mark.\n\nYes."
    )
    assert [one.text for one in document.sentences] == [
        'Mr. Smith, of St. Ives, said "Go!"',
        "He went away from there (see p. 135, J. Doe).",
        '"Why?" asked I.',
        "The list of what he took with him is:",
        "Yes.",
    ]
    assert [one.last for one in document.sentences] == [False, False, True, True, True]
    assert [one.whole for one in document.sentences] == [True, True, True, False, True]
    assert document.before[-1] == n_words(document.text(0, 5))
    assert document.text(1, 4).endswith('"Why?" asked I.\n\nThe list of what he took with him is:')
    assert document_of("One line is here.\nAnother line\nis there as well, and has more words.").before[-1] == 12
    assert document_of("").sentences == ()


@pytest.mark.parametrize("words", [100, 333, 900])
def test_a_text_is_cut_at_the_whole_sentence_nearest_to_the_asked_words(words: int) -> None:
    document = document_of(prose(5, 200))
    for start in range(0, 60, 15):
        stop = document.cut(start, words, round(0.9 * words), round(1.1 * words))
        sizes = {at: n_words(document.text(start, at)) for at in range(start + 1, len(document.sentences))}
        fits = {
            at: n for at, n in sizes.items() if 0.9 * words <= n <= 1.1 * words and document.sentences[at - 1].whole
        }
        if stop is None:
            assert not fits
            continue
        assert stop in fits
        nearest = min(abs(n - words) for n in fits.values())
        extra = 0.02 * words if document.sentences[stop - 1].last else 0
        assert abs(fits[stop] - words) <= nearest + extra


def test_counted_parts_are_the_text_in_about_equal_parts() -> None:
    document = document_of(prose(6, 300))
    sentences = document.sentences[:120]
    words = document.before[120]
    text = counted(sentences, parts_for(words))
    assert text is not None
    assert counted_parts(text, parts_for(words)) == 1
    assert flat(text) == flat(document.text(0, 120))
    sizes = [n_words(part) for part in re.split(r"\[\d+/\d+\] ", text)[1:]]
    # a cut is off by half a sentence of 25 words at most, at both ends
    assert all(abs(size - words / len(sizes)) <= 25 for size in sizes)
    assert counted(sentences[:3], 3) is not None
    assert counted(sentences[:3], 4) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (19, "nineteen"),
        (40, "forty"),
        (85, "eighty-five"),
        (100, "one hundred"),
        (640, "six hundred forty"),
        (1000, "one thousand"),
        (8005, "eight thousand five"),
        (12_345, "twelve thousand three hundred forty-five"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert spelled(number) == words


def test_numbers_that_have_no_words_here() -> None:
    with pytest.raises(ValueError, match="number=100000: expected 0 to 99,999"):
        spelled(100_000)


def test_lengths_are_asked_for_in_many_wordings() -> None:
    templates = [one for many in WORDINGS.values() for one in many]
    assert len(set(templates)) == len(templates) >= 20
    rng = random.Random(0)
    seen = [drawn(rng, counted=i % 2 == 0) for i in range(3000)]
    assert {one.template for one in seen} == set(templates)
    assert {one.counted for one in seen} == {"", *COUNTED}
    for one in seen[:300]:
        prompt = one.prompt("The text.", 1200, 10)
        assert "{" not in prompt
        assert not re.search("below|above|following|here", prompt)
        assert prompt.startswith("The text.\n\n") if one.first else prompt.endswith("\n\nThe text.")
        assert ("[1/10]" in prompt) == bool(one.counted)
    shown = {
        Wording("about", "{n} {d}", "", digits, False).prompt("", 1200, 1).strip(): digits
        for digits in (",", "", "words")
    }
    assert list(shown) == ["1,200 1,200", "1200 1200", "one thousand two hundred 1,200"]
    bounds = {kind: Wording(kind, "", "", ",", False).bounds(1200) for kind in WORDINGS}
    assert bounds == {"about": (1100, 1300), "range": (1100, 1300), "at least": (1200, 1300), "at most": (1100, 1200)}


def test_answers_are_genuine_text_of_the_asked_length(folder: Path, rows: tuple[list[Any], list[Any]]) -> None:
    texts = {file.stem: flat(document_of(file.read_text()).text(0, 10**6)) for file in folder.glob("*.txt")}
    training, held = rows
    assert len(training) == 400
    assert {row["source"] for row in training} == {"one", "two"}
    assert {row["source"] for row in held} == {"held", "other"}
    for row in [*training, *held]:
        asked, answer = (one["content"] for one in row["messages"])
        written = n_words(answer)
        assert written == row["written"]
        assert flat(answer) in texts[row["source"]]
        assert length_score(answer, row["words"]) > 0.9
        assert answer[-1] == "."
        assert (row["form"] == "counted") == (row["parts"] is not None) == ("[1/" in answer)
        assert row["kind"] != "at least" or written >= row["words"]
        assert row["kind"] != "at most" or written <= row["words"]
        if row["parts"]:
            assert counted_parts(answer, row["parts"]) == 1
            assert f"/{row['parts']}]" in asked
    assert all(100 <= row["words"] <= 3000 for row in training)
    assert {row["kind"] for row in training} == set(WORDINGS)


def test_the_same_beginning_has_several_lengths_and_the_number_alone_differs(rows: tuple[list[Any], list[Any]]) -> None:
    training, held = rows
    by_beginning = defaultdict(list)
    for row in training:
        by_beginning[row["beginning"]].append(row)
    several = [many for many in by_beginning.values() if len({row["words"] for row in many}) > 1]
    assert len(several) >= len(by_beginning) - 1  # the last one may be cut off by the number of samples
    for many in several:
        answers = sorted((flat(row["messages"][1]["content"]) for row in many), key=len)
        assert all(answers[-1].startswith(one) for one in answers)
    asked = defaultdict(set)
    for row in held:
        asked[row["beginning"], row["form"]].add(row["words"])
    assert len(asked) == 16
    assert all(one == set(ASKED) for one in asked.values())
    texts = {row["messages"][0]["content"] for row in held if row["words"] == 500 and row["kind"] != "range"}
    for row in held:
        if row["words"] == 1000 and row["kind"] == "about" and not row["parts"]:
            prompt = row["messages"][0]["content"]
            numbers = [("1,000", "500"), ("1000", "500"), ("one thousand", "five hundred")]
            assert any(prompt.replace(a, b) in texts for a, b in numbers)


def test_beginnings_are_spread_over_a_text() -> None:
    """More of it is read than by as many that begin anywhere, which leave a share of exp(-load) unread."""
    document = document_of(prose(7, 6000))
    whole = flat(document.text(0, len(document.sentences)))
    longest = dict[str, str]()
    for row in training_rows({"text": document}, 150, seed=0, least=100, most=1000):
        text = flat(row["messages"][-1]["content"])
        longest[row["beginning"]] = max(text, longest.get(row["beginning"], ""), key=len)
    load, read = sum(map(len, longest.values())) / len(whole), bytearray(len(whole))
    for text in longest.values():
        at = whole.index(text)
        read[at : at + len(text)] = b"1" * len(text)
    assert 0.3 < load < 0.8
    assert read.count(b"1") / len(whole) > 1 - math.exp(-load) + 0.07


def test_a_seed_decides_all_of_it(folder: Path, rows: tuple[list[Any], list[Any]]) -> None:
    given = {"samples": 400, "beginnings": 8, "lengths": ASKED, "most": 3000}
    assert make([folder], ["held", "other"], **given) == rows
    other = make([folder], ["held", "other"], seed=1, **given)
    assert other[0] != rows[0]
    assert other[1] != rows[1]


def test_the_command_writes_chats_for_training_and_held_back_ones(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "writing.jsonl"
    common = ["--documents", str(folder), "--held-back", "held, other", "--out", str(out), "--lengths", "200", "500"]
    main([*common, "--samples", "30", "--beginnings", "3", "--most", "800"])
    assert len(list(read_chats(out))) == 30
    held = [json.loads(line) for line in out.with_name("writing.held_back.jsonl").read_text().splitlines()]
    assert sorted({row["words"] for row in held}) == [200, 500]
    said = capsys.readouterr().out
    assert "30 tasks" in said
    # 200 words are one part of a text, or two: those in counted parts have at least two
    assert f"{len(held)} tasks" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--documents": "nowhere"}, r"recipes.benchmarks.documents nowhere` fetches some"),
        ({"--held-back": "helt"}, "helt: not among the documents, which are held, one, other, two"),
        ({"--held-back": ""}, "held_back: nothing: expected some of the documents, and others that are trained on"),
        ({"--held-back": "one,two,held,other"}, "and others that are trained on"),
        ({"--samples": "0"}, "samples=0, .* expected whole numbers, at least 1"),
        ({"--least": "500", "--most": "500"}, "the least below the most"),
        ({"--out": "/dev/null/w.jsonl"}, "--out"),
        ({"--lengths": "90000"}, r"no passage can be cut at each of \[90000\] words"),
    ],
)
def test_what_cannot_be_made_is_said(
    change: dict[str, str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--documents": str(folder), "--held-back": "held", "--out": str(tmp_path / "w.jsonl"), "--samples": "5"}
    with pytest.raises(SystemExit):
        main([part for pair in {**given, **change}.items() for part in pair])
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert list(tmp_path.iterdir()) == []


def test_documents_that_hold_too_little(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "held.txt").write_text((folder / "held.txt").read_text())
    (tmp_path / "code.txt").write_text("x[1] = 2;\n\n" * 50)
    with pytest.raises(ValueError, match="code: no passage of running text has two lengths of 100 to 8000 words"):
        make([tmp_path], ["held"], samples=5, beginnings=1, lengths=[100])
    (tmp_path / "code.txt").write_text(prose(9, 120))
    common = ["--documents", str(tmp_path), "--held-back", "held", "--lengths", "300", "--beginnings", "1"]
    main([*common, "--out", str(tmp_path / "w.jsonl"), "--samples", "90000"])
    assert re.search(r"hold [\d,]+ tasks, fewer than --samples 90,000", capsys.readouterr().out)


def test_text_of_held_back_documents_in_the_training_set_is_refused(folder: Path, tmp_path: Path) -> None:
    held = (folder / "held.txt").read_text()
    (tmp_path / "held.txt").write_text(held)
    # other paragraphs, so that none is dropped as repeated
    (tmp_path / "copy.txt").write_text("Before. " + " ".join(held.split()))
    with pytest.raises(ValueError, match=r"held: .* of its tokens lie in runs of 13 that are trained on"):
        make([tmp_path], ["held"], samples=5, beginnings=1, lengths=[200])


def sampled(*words: int, ended: list[bool] | None = None) -> Sampled:
    texts = ["word " * n for n in words]
    return Sampled([{"role": "user", "content": "Write."}], 100, texts, ended or [True] * len(words))


def test_pairs_are_the_best_by_length_and_a_random_worse_one() -> None:
    def words_of(pair: dict[str, Any]) -> tuple[int, int]:
        return n_words(pair["chosen"][0]["content"]), n_words(pair["rejected"][0]["content"])

    many = [sampled(60, 100, 300, 20)] * 60
    pairs, without = length_pairs(many)
    assert without == 0
    assert {words_of(pair) for pair in pairs} == {(100, 60), (100, 300), (100, 20)}
    assert length_pairs(many)[0] == pairs != length_pairs(many, seed=1)[0]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Write."}]
    assert all(pair["chosen"][0]["role"] == pair["rejected"][0]["role"] == "assistant" for pair in pairs)
    # the nearest one was cut, so that it scores 0
    (pair,), _ = length_pairs([sampled(100, 90, ended=[False, True])])
    assert words_of(pair) == (90, 100)
    assert pair["scores"] == [pytest.approx(1 - (100 / 90 - 1) / 2), 0]


def test_prompts_without_a_better_answer_make_no_pair() -> None:
    samples = [sampled(90, 90), sampled(10, 20), sampled(100, 100, ended=[False, False]), sampled(100, 99)]
    pairs, without = length_pairs(samples)
    assert (len(pairs), without) == (1, 3)
    assert length_pairs(samples, least=0.1) == ([], 4)
    for wrong in (sampled(100), Sampled([], 100, ["a", "b"], [True])):
        with pytest.raises(ValueError, match=r"prompt 0: .* expected two answers at least"):
            length_pairs([wrong])
