"""Scores worked by hand from the official definitions, traps included."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from hf_longctx.evaluation.benchmarks import (
    hellobench,
    leval,
    longbench,
    longbench2,
    longchat,
    longwriter,
    m4le,
    ruler,
    sgt,
)
from hf_longctx.evaluation.effective import effective_length, own_score, weighted_averages
from hf_longctx.evaluation.metrics import check, score, scores
from hf_longctx.evaluation.sample import Sample


def sample(metric: str, *answers: str, **more: Any) -> Sample:
    return Sample(id="1", task="t", context="", question="", answers=answers, max_new_tokens=8, metric=metric, **more)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # all references count in one, any in the other; case does not
        (ruler.string_match_all("It is ABC and def.", ["abc", "DEF", "x", "y"]), 0.5),
        (ruler.string_match_part("it is abc", ["x", "ABC"]), 1),
        (ruler.string_match_part("it is ab", ["x", "ABC"]), 0),
        # a part of a longer word is a match officially
        (ruler.string_match_all("words", ["word"]), 1),
        (longchat.first_integer("<24169> or 7", ["24169"]), 1),
        (longchat.first_integer("7 or 24169", ["24169"]), 0),
        (longchat.first_integer("24,169", ["24169"]), 0),
        (longchat.first_integer("none", ["24169"]), 0),
        # SQuAD: "the big cat" and "a cat sat" share cat; 1/2 and 1/2
        (longbench.qa_f1("The big cat!", "a cat sat"), 0.5),
        # tokens count as often as they appear: 2 shared of 3 and of 2
        (longbench.qa_f1("go go go", "go go"), 0.8),
        (longbench.qa_f1("the", "a"), 0),  # officially 0 where both are empty
        (m4le.squad_f1("the", "a"), 1),  # and 1 here
        (longbench.normalise("A  man, the-plan; AN apple"), "man theplan apple"),
        (longbench.count("There are 3, no, 4 of 4", "4"), 2 / 3),
        (longbench.count("none", "4"), 0),
        (longbench.retrieval("Paragraph 12", "Paragraph 12"), 1),
        (longbench.retrieval("12 or 13", "Paragraph 12"), 0.5),
        (longbench.retrieval("段落7", "段落7"), 1),
        # the line with a comment is left out; SequenceMatcher: 2 * 4 / (5 + 5)
        (longbench.code_similarity("\n# no\nx = 1\ny", "x = 2"), 0.8),
        (longbench.code_similarity("// no", "x = 2"), 0),
        (longbench.code_similarity("", ""), 1),
        (longbench.classification("it is B or C", "B", ["A", "B", "C"]), 0.5),
        (longbench.classification("it is A", "B", ["A", "B", "C"]), 0),
        # "Food" is a part of "Food other" and removed, the loop then skips "Fo": it stays in and halves the score
        (longbench.classification("Food other", "Food other", ["Food", "Fo", "Food other"]), 0.5),
        (longbench2.letter("**The correct answer is (B)**"), "B"),
        (longbench2.letter("The correct answer is C."), "C"),
        (longbench2.letter("B"), None),
        (longbench2.choice("The correct answer is (A) or The correct answer is (B)", ["B"]), 0),
        (longbench2.choice_compensated("no idea", ["B"]), 0.25),
        (longbench2.choice_compensated("The correct answer is (A)", ["B"]), 0),
        (leval.letters_partial("A, C", ["AC"]), 1),
        (leval.letters_partial("AC", ["AC"]), 1),
        (leval.letters_partial("A", ["AC"]), 0.25),
        (leval.letters_partial("A B", ["AC"]), 0),  # a wrong one
        (leval.letters_partial("", ["AC"]), 0),
        (leval.letters_exact("The answer: (D) because", ["D"]), 1),
        (leval.letters_exact("Call it D-day", ["B"]), 0),
        (leval.exact("The  Truth.", "truth"), 1),
        (leval.last_number("so 3 and 1,200.0", ["The answer is 1200"]), 1),
        (leval.last_number("no number", ["1200"]), 0),
        (m4le.contains("The Answer", ["x", "answer"]), 1),
        (m4le.same(" Answer ", ["answer"]), 1),
        (m4le.same("the answer", ["answer"]), 0),
        # sets: {a, b} and {b, c, d}: 2 * 1 / 5
        (m4le.set_f1("a, b. and more", ["b, c, d."], ",", "."), 0.4),
        (m4le.set_f1("", ["b"], ",", "."), 0),
        # spot values of facts 3.1
        (longwriter.length_score("word " * 2500, 1000), 0.5),
        (longwriter.length_score("word " * 4000, 1000), 0),
        (longwriter.length_score("word " * 500, 1000), 0.5),
        (longwriter.length_score("word " * 333, 1000), 0),
        (longwriter.length_score("word " * 1000, 1000), 1),
        (longwriter.length_score("", 1000), 0),
        (longwriter.n_words("Zwei words, 两个 x1"), 4),  # x1 is none
        (hellobench.long_enough("word " * 500, 1000), 0.5),
    ],
)  # fmt: skip
def test_worked_by_hand(found: Any, expected: Any) -> None:
    assert found == (expected if isinstance(expected, str | None) else pytest.approx(expected))


def test_bleu() -> None:
    # 1-grams 5/6 (the is clipped to 1... of "the cat sat on the mat" both "the" match), 2-grams 3/5, 3-grams 1/4
    prediction, answer = "the cat sat on a mat", "the cat sat on the mat"
    expected = math.exp((math.log(5 / 6) + math.log(3 / 5) + math.log(2 / 4) + math.log(1 / 3)) / 4)
    assert m4le.bleu([prediction], [[answer]]) == pytest.approx(expected)
    # half as long: brevity exp(1 - 6 / 4)
    assert m4le.bleu(["the cat sat on"], [[answer]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert m4le.bleu(["no such words here"], [[answer]]) == 0
    assert m4le.bleu([""], [[answer]]) == 0
    # of the corpus, not the mean of sentences
    assert m4le.bleu([prediction, "x"], [[answer], ["y"]]) != m4le.bleu([prediction], [[answer]]) / 2


def test_rouge() -> None:
    pytest.importorskip("rouge")
    # the longest common subsequence "the cat the mat" has 4 of 5 and of 6 words; the package puts words into sets:
    # {the, cat, mat} of {the, cat, on, mat} and of {the, cat, sat, on, mat}
    found = longbench.rouge_l("the cat on the mat", "the cat sat on the mat")
    precision, recall = 4 / 4, 4 / 5
    assert found == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    assert m4le.rouge_recall("the cat on the mat", "the cat sat on the mat") == pytest.approx(recall)
    assert longbench.rouge_l("", "the cat") == 0
    assert longbench.rouge_l("...", "the cat") == 0
    assert leval.rouge_overall("one two", "one two") == pytest.approx(1, abs=1e-6)
    assert leval.rouge_overall("one two", "two one") == 0  # no bigram in common


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge", None)
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ImportError, match="package rouge"):
        longbench.rouge_l("a", "b")
    with pytest.raises(ImportError, match="pip install jieba"):
        check([sample("qa_f1_zh", "b")])


def test_chinese_scores_are_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longbench, "cut_zh", lambda text: text.split("|"))
    assert longbench.qa_f1_zh("北京|，|是", "北京|。") == pytest.approx(2 / 3)  # punctuation is no word


def test_sgt_rates() -> None:
    text = "#*# Week 1: a red dress. #*# Week 2: nothing #*# Week 2: twice #*# Week 9: x *** finished #*# Week 3: late"
    assert sgt.sections(text, "Week").keys() == {1, 2, 9}
    assert sgt.completion_rate(text, "Week", 4) == 0.5  # 9 was not asked for, 3 came after the end
    assert sgt.instructions_followed(text, "Week", {1: "the red dress", 2: "a blue hat", 4: "x"}) == (0.5, 1 / 3)
    found = score(text, sample("sgt", meta={"type": "Week", "number": 4, "checks": {"1": "red dress", "4": "x"}}))
    assert found == 0.5 * 0.5


def test_the_best_reference_counts_and_only_what_comes_before_the_stop() -> None:
    assert score("a cat", sample("qa_f1", "dog", "cat")) == 1
    assert score("cat\ndog", sample("qa_f1", "dog", stop=("\n",))) == 0
    assert score("\n\ncat\ndog", sample("qa_f1", "cat", stop=("\n",), meta={"first_line": True})) == 1
    assert score("\ncat", sample("contains", "cat", stop=("\n",))) == 0  # M4LE does not strip
    assert score('He wrote "cat"', sample("same", "cat", meta={"quoted": True})) == 1
    assert scores(["cat", "dog"], [sample("qa_f1", "cat")] * 2) == (0.5, [1, 0])
    assert scores(["cat"], [sample("judge")]) == (None, [None])
    assert scores(["the cat sat on it"], [sample("bleu", "the cat sat on it")])[0] == pytest.approx(1)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match="no such metric"):
        check([sample("bleurt")])
    with pytest.raises(ValueError, match=r"needs meta\['all_classes'\]"):
        check([sample("classification", "x")])
    with pytest.raises(ValueError, match="0 samples"):
        scores([], [])
    with pytest.raises(ValueError, match="Paragraph N"):
        longbench.retrieval("1", "the first")
    with pytest.raises(ValueError, match="at least one word"):
        longwriter.length_score("a", 0)


def test_effective_lengths() -> None:
    found = {4096: 90.0, 8192: 86.0, 16384: 80.0, 32768: 88.0}
    assert effective_length(found, 85.6) == 8192  # what comes after a gap does not count
    assert effective_length(found, 95) is None
    assert own_score(found, 10_000) == (8192, 86.0)
    assert own_score(found, 1000) is None
    assert weighted_averages({1: 10.0, 2: 40.0}) == ((10 + 80) / 3, (20 + 40) / 3)
