"""What cannot be read in segments is said before anything is read, or with what was read kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from hf_longctx.generation.xl3m import XL3M
from hf_longctx.generation.xl3m.frame import Frame
from tests.tiny import text, tiny, tokenizer

WINDOW = 96


def ask(settings: XL3M | None = None, ids: Any = None, **more: Any) -> Any:
    model = tiny(max_position_embeddings=WINDOW)
    given: dict[str, Any] = {"question": 6, "max_new_tokens": 4, "do_sample": False, **more}
    chosen = settings or XL3M(segment=16, overlap=4)
    return model.generate(text(1, 300) if ids is None else ids, custom_generate=chosen, **given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 0}, "segment=0, overlap=32: expected a segment of at least 1 token"),
        ({"segment": -5, "overlap": 0}, "segment=-5"),
        ({"segment": 32}, "an overlap from 0 to less than the segment"),
        ({"overlap": -1}, "overlap=-1"),
        ({"score": "gian"}, "score='gian': expected one of gain, question_nll, entropy"),
        ({"keep": 1.5}, r"keep=1.5: expected 0 \(whatever there is room for\) to 1"),
        ({"key_context": 100}, "key_context=100 has no room for a segment of 256"),
        ({"window": 0}, "window=0: expected at least 1 token"),
        ({"question_tokens": 0}, "question_tokens=0"),
        ({"segment": "many"}, "segment='many' is str, expected int"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XL3M(**fields)


def test_a_misspelt_or_positional_setting() -> None:
    with pytest.raises(TypeError, match="Did you mean 'segment'"):
        XL3M(segmnt=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="by name only"):
        XL3M(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": 96}, "the question has 96 tokens, and the model reads 96"),
        ({"question": 250}, "the question has 250 tokens"),
        ({"settings": XL3M(segment=90, overlap=0)}, "a segment of 90 tokens does not fit the 86 that are left"),
        ({"settings": XL3M(segment=40, overlap=0)}, "40 tokens does not fit the 24 that are read again.*key_context"),
        ({"head": 75}, "does not fit the 11 that are left for the text: the model reads 96, the head has 75"),
        ({"max_new_tokens": 90}, "does not fit the 0 that are left.* 90 are to be written.*max_new_tokens"),
        ({"question": 300}, "the question has 300 tokens"),
        ({"question": 80, "head": 220}, "the text is empty"),
        ({"document": []}, "the text is empty"),
        ({"document": "words"}, r"Name a file by its Path, document=Path\(...\), or give token ids"),
        ({"question": 1.5}, "question=1.5: expected a whole number of tokens, words or ids"),
        ({"document": [61]}, "outside the model's vocabulary"),
        ({"document": Path("nowhere.txt")}, "needs the tokenizer"),
        ({"question": "w3 w4"}, "needs the tokenizer"),
        ({"question": 1}, "score='gain' needs at least 2"),
        ({"question": ["w3", "w4"]}, "2 questions for 1 prompts"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "Pass input_ids|inputs_embeds"),
        ({"ids": text(2, 300), "document": [3, 4]}, "one text for 2 prompts"),
    ],
)
def test_calls_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**given)


def test_a_segment_beyond_the_window_is_refused_without_a_prompt() -> None:
    model = tiny(max_position_embeddings=WINDOW)
    XL3M(segment=WINDOW // 4, overlap=0).check_room(model, WINDOW + 1)
    with pytest.raises(ValueError, match="a segment of 25 tokens does not fit the 24 that are read again"):
        XL3M(segment=WINDOW // 4 + 1, overlap=0).check_room(model, WINDOW + 1)


def test_settings_of_the_model_that_are_none() -> None:
    from hf_longctx.generation.xl3m import xl3m

    model = tiny(max_position_embeddings=WINDOW)
    model.generation_config.xl3m = "yes"
    with pytest.raises(ValueError, match=r"generation_config\.xl3m is 'yes'; expected the object that"):
        model.generate(text(1, 300), custom_generate=xl3m, question=6, max_new_tokens=4)


def test_an_error_of_a_source_ends_in_one_full_stop() -> None:
    def source() -> Iterator[int]:
        yield 3
        raise OSError("The disk is gone.")

    with pytest.raises(RuntimeError, match=r"raised OSError after 1 ids: The disk is gone\. With a file"):
        ask(document=source())


def test_a_cache_that_has_read_is_refused() -> None:
    from transformers import DynamicCache

    model, cache = tiny(max_position_embeddings=WINDOW), DynamicCache()
    model(text(1, 10), past_key_values=cache)
    with pytest.raises(ValueError, match="the cache holds 10 tokens"):
        ask(past_key_values=cache)


def test_a_model_without_a_trained_length_must_be_told() -> None:
    class Endless:
        config = PreTrainedConfig()

    with pytest.raises(ValueError, match=r"XL3M\(window=...\)"):
        Frame(Endless(), XL3M(), 4)
    assert Frame(Endless(), XL3M(window=96), 4).window == 96


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b"w3 \0 w4", "holds zero bytes"), (b"w3 caf\xe9", "is not UTF-8")],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises((ValueError, RuntimeError), match=message):
        ask(document=tmp_path / "text.txt", tokenizer=tokenizer())


def test_a_file_is_read_as_its_ids_are(tmp_path: Path) -> None:
    words = " ".join(f"w{3 + i * 7 % 50}" for i in range(200))
    (tmp_path / "text.txt").write_text(words)
    ids = text(1, 8)
    from_file = ask(ids=ids, head=2, document=tmp_path / "text.txt", tokenizer=tokenizer())
    assert torch.equal(from_file, ask(ids=ids, head=2, document=tokenizer()(words)["input_ids"]))
