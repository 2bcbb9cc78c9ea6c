"""Long texts become segments that fit, at the joints a reader would choose, and no character is lost."""

from __future__ import annotations

import pytest

from hf_longctx.clip.sentences import segments, split_as_published, split_sentences
from tests.reference.long_align import sentences_as_published


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat sits. It runs! Is it late? Yes; very.", ["A cat sits.", "It runs!", "Is it late?", "Yes;", "very."]),
        ("lower case. is split too", ["lower case.", "is split too"]),
        ("A 3.5 m pole at f/1.8, v2.0.1, see a.png. Next", ["A 3.5 m pole at f/1.8, v2.0.1, see a.png.", "Next"]),
        ("Dr. Who and Mr. Smith of St. Ives. Rain", ["Dr. Who and Mr. Smith of St. Ives.", "Rain"]),
        ("Painted (e.g. by C. Monet, i.e. soft). Rain", ["Painted (e.g. by C. Monet, i.e. soft).", "Rain"]),
        ("J. R. R. Tolkien of the U.S. Army", ["J. R. R. Tolkien of the U.S. Army"]),
        ("It is 5 p.m. The sun, trees, etc. are red.", ["It is 5 p.m.", "The sun, trees, etc. are red."]),
        ("1. A cat. 2. A dog in 1990. End", ["1. A cat.", "2. A dog in 1990.", "End"]),
        ("Slowly... it falls. Then… Rain", ["Slowly... it falls.", "Then…", "Rain"]),
        ('She said "Go!" and left. "Stop." He ran.', ['She said "Go!" and left.', '"Stop."', "He ran."]),
        ("What?! No... Never!!", ["What?!", "No...", "Never!!"]),
        ("a title\n\nA cat\non a mat\n \nEnd", ["a title", "A cat\non a mat", "End"]),
        ("猫が座る。犬が走る！本当？はい", ["猫が座る。", "犬が走る！", "本当？", "はい"]),
        ("他说：“好。”然后走了；下雨。", ["他说：“好。”", "然后走了；", "下雨。"]),
        ("बिल्ली बैठी है। कुत्ता", ["बिल्ली बैठी है।", "कुत्ता"]),
        ("هل هذا قط؟ نعم", ["هل هذا قط؟", "نعم"]),
        ("", []),
        (" \n ", []),
        (" . ", ["."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize("text", ["A 3.5 m cat. Is it? Yes!", 'He "ran"! Then;" end', "", ".", "no mark", "a..b"])
def test_published_splitting_is_the_published_codes(text: str) -> None:
    assert split_as_published(text) == sentences_as_published(text)


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("count", [words, len], ids=["words", "characters"])
def test_segments_fit_and_nothing_is_lost(limit: int, merge: bool, count: object) -> None:
    text = (
        "A long sentence, with 1,000 commas, (brackets of many words) and an em-dash — here, that goes on and on. "
        "Short one! 一段没有空格的很长的文字，中间有逗号、顿号，还有更多的字。 "
        "Supercalifragilisticexpialidocious\n\nÉ🙂 end"
    )
    parts = segments(text, count, limit, merge=merge)  # type: ignore[arg-type]
    assert all(0 < count(part) <= limit for part in parts)  # type: ignore[operator]
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_long_sentences_are_cut_at_the_largest_joint() -> None:
    text = "one two three, four five (six seven) eight nine ten eleven twelve."
    assert segments(text, words, 7) == ["one two three, four five (six seven)", "eight nine ten eleven twelve."]
    assert segments("one, two three four five six seven", words, 4) == ["one,", "two three four five", "six seven"]
    assert segments("abcdefgh", len, 4) == ["abcd", "efgh"]
    assert segments("一二三四五，六七八", len, 6) == ["一二三四五，", "六七八"]


def test_merging_joins_what_fits_and_empty_texts_are_one_segment() -> None:
    assert segments("A b. C d. E f g h.", words, 4) == ["A b.", "C d.", "E f g h."]
    assert segments("A b. C d. E f g h.", words, 4, merge=True) == ["A b. C d.", "E f g h."]
    assert segments("", words, 4) == segments("  ", words, 4, merge=True) == [""]
    assert segments("", words, 4, "longalign") == [""]


def test_a_splitter_of_ones_own() -> None:
    assert segments("a|b c| ", words, 1, lambda text: text.split("|")) == ["a", "b", "c"]
    for wrong, says in (
        (lambda text: text, "made a str of 'a b'"),
        (lambda text: [1], "made a list of 'a b': expected a list of sentences"),
        (lambda text: [], "made nothing of 'a b'"),
        ("pysbd", "splitter='pysbd': expected 'sentences', 'longalign'"),
    ):
        with pytest.raises(ValueError, match=says):
            segments("a b", words, 4, wrong)  # type: ignore[arg-type]


def test_a_character_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="'🙂' alone has 4 tokens, and a segment takes 3"):
        segments("🙂", lambda text: len(text.encode()), 3)
