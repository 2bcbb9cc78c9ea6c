"""What a judge is asked, and its marks read back from anything."""

from __future__ import annotations

import json
import random

import pytest

from hf_longctx.evaluation.judge import DIMENSIONS, judge_prompt, quality_score, read_marks

MARKS = dict(zip(DIMENSIONS, (1, 2, 3, 4, 5, 3), strict=True))
TEXT = json.dumps(MARKS)


def test_the_prompt_has_the_request_the_text_and_every_dimension() -> None:
    prompt = judge_prompt("Write {x} about 5% of it.", "The {text} %s.")
    assert "<request>\nWrite {x} about 5% of it.\n</request>" in prompt
    assert "<text>\nThe {text} %s.\n</text>" in prompt
    assert all(f"- {name}: " in prompt for name in DIMENSIONS)
    example = prompt[prompt.rindex("{") :]
    assert list(json.loads(example.replace("MARK", "3"))) == list(DIMENSIONS)
    # six dimensions, as in the paper
    assert len(DIMENSIONS) == 6


@pytest.mark.parametrize(
    "reply",
    [
        TEXT,
        f"Here they are:\n```json\n{json.dumps(MARKS, indent=2)}\n```\nI hope that helps.",
        json.dumps({name.title().replace(" ", "_"): float(mark) for name, mark in MARKS.items()}),
        json.dumps({name.replace("and", "&"): str(mark) for name, mark in MARKS.items()}),
        json.dumps({"marks": MARKS}),
        json.dumps({"Analysis": "Dull.", **MARKS, "total": 18}),
        "{a set} of marks {}: " + TEXT,
    ],
)
def test_marks_are_read_from_json_with_words_around_it(reply: str) -> None:
    assert read_marks(reply) == MARKS


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("", "no JSON objects; expected one with the marks of relevance, accuracy"),
        ("I cannot judge this.", "no JSON objects"),
        (TEXT[:-10], "no JSON objects"),
        (str(MARKS), "no JSON objects"),
        (f"{TEXT} or rather {TEXT}", "2 JSON objects"),
        (json.dumps({"relevance": 3}), "the marks of accuracy, .*, reading experience are missing"),
        (json.dumps(MARKS | {"clarity": 6}), "clarity is 6; expected a whole number from 1 to 5"),
        (json.dumps(MARKS | {"clarity": 0}), "clarity is 0"),
        (json.dumps(MARKS | {"clarity": 2.5}), "clarity is 2.5"),
        (json.dumps(MARKS | {"clarity": True}), "clarity is True"),
        (json.dumps(MARKS | {"clarity": None}), "clarity is None"),
        (json.dumps(MARKS | {"clarity": "4/5"}), "clarity is '4/5'"),
        (json.dumps(MARKS | {"clarity": "9" * 9000}), "clarity is 99"),
        (json.dumps(MARKS | {"clarity": float("inf")}), "clarity is inf"),
        (json.dumps(MARKS | {"clarity": float("nan")}), "clarity is nan"),
        (json.dumps(MARKS | {"clarity": [3]}), r"clarity is \[3\]"),
        ("{" * 100_000, "no JSON objects"),
        ("{" + "-" * 15_000 + "1}", "no JSON objects"),
        ("{" + "[" * 15_000 + "}", "no JSON objects"),
        ("{__import__('os').abort(): 1}", "no JSON objects"),
    ],
)
def test_other_replies_are_refused_and_nothing_is_run(reply: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_marks(reply)


def test_any_damage_to_a_reply_gives_marks_or_a_clear_error() -> None:
    rng, said = random.Random(0), set[str]()
    for _ in range(2000):
        damaged = list(TEXT)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = chr(rng.choice([0, 34, 39, 44, 58, 91, 92, 123, 125, 0x661, 0xD800]))
        try:
            assert set(read_marks("".join(damaged)).values()) <= {1, 2, 3, 4, 5}
        except ValueError as error:
            said.add(str(error))
    assert len(said) > 3
    assert all("expected" in one or "missing" in one for one in said)


def test_quality_is_the_mean_mark_from_0_to_1() -> None:
    assert quality_score(dict.fromkeys(DIMENSIONS, 1)) == 0
    assert quality_score(dict.fromkeys(DIMENSIONS, 5)) == 1
    # the paper: (mean - 1) * 25, of 100
    assert 100 * quality_score(MARKS) == pytest.approx((3 - 1) * 25)
