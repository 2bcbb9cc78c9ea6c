"""`stream`: what a reader reads and writes is what one forward and `generate` would, at constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite, StreamingLLM, stream
from hf_longctx.streaming.reader import Reader, SourceError
from tests.contract.registry import close
from tests.tiny import FAMILIES, VOCAB, logits_of, text, tiny

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=16),
    "streaming_llm": StreamingLLM(n_sink=2, window=16),
}
GREEDY: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def generated(model: Any, ids_1L: Tensor, **settings: Any) -> list[int]:
    return model.generate(ids_1L, **settings)[0, ids_1L.shape[1] :].tolist()


@every_method
@every_family
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_reader_writes_what_generate_does(family: str, method: Any, chunk: int) -> None:
    model, ids = tiny(family), text(1, 100)
    with method.on(model):
        reader = stream(model, ids[0], chunk=chunk)
        assert reader.position == 100
        close(reader.logits, logits_of(model, ids)[0, -1])
        assert list(reader.generate(**GREEDY)) == generated(model, ids, **GREEDY)
        assert reader.position == 130


@every_method
@every_family
def test_turns_are_one_text(family: str, method: Any) -> None:
    model, first, second = tiny(family), text(1, 50), text(1, 23, seed=1)
    with method.on(model):
        reader = stream(model, first[0], chunk=16)
        answer = list(reader.generate(**GREEDY))
        reader.read(second[0])
        assert reader.position == 103
        whole = torch.cat([first, torch.tensor([answer]), second], 1)
        close(reader.logits, logits_of(model, whole)[0, -1])
        assert list(reader.generate(**GREEDY)) == generated(model, whole, **GREEDY)


def test_loop_that_is_left_early_has_written_what_came_out() -> None:
    model, ids = tiny(), text(1, 40)
    with METHODS["lm_infinite"].on(model):
        reader, came = stream(model, ids[0]), []
        for token in reader.generate(do_sample=False):  # without a limit
            came.append(token)
            if len(came) == 5:
                break
        assert reader.position == 45
        close(reader.logits, logits_of(model, torch.cat([ids, torch.tensor([came])], 1))[0, -1])


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "lm_infinite"), ("llama", "streaming_llm"), ("gemma3", "lm_infinite")]
)
def test_memory_is_constant(family: str, name: str) -> None:
    model, method = tiny(family), METHODS[name]

    def stored(reader: Reader) -> int:
        return sum(layer.keys.untyped_storage().nbytes() for layer in reader.cache.layers)

    with method.on(model):
        reader = stream(model, text(1, 100)[0], chunk=50)
        list(reader.generate(max_new_tokens=99, do_sample=False))
        reader.read([3])
        assert reader.position == 200
        before = reader.nbytes, stored(reader)
        reader.read(text(1, 1_700)[0])
        list(reader.generate(max_new_tokens=99, do_sample=False))
        reader.read([3])
        assert reader.position == 2_000
        assert (reader.nbytes, stored(reader)) == before


# -- where ids come from -----------------------------------------------------------------------------------------------
def sources(ids: Tensor, folder: Path) -> dict[str, Any]:
    (folder / "ids.bin").write_bytes(ids.to(torch.int32).numpy().tobytes())
    mapped = torch.from_file(str(folder / "ids.bin"), shared=False, size=len(ids), dtype=torch.int32)
    pieces = ids.split([1, 0, 30, 2, 67])
    return {
        "a list": ids.tolist(),
        "a tensor": ids,
        "a memory-mapped tensor": mapped,
        "an array": ids.numpy().astype("uint16"),
        "a generator of ints": (i for i in ids.tolist()),
        "a generator of lists": (piece.tolist() for piece in pieces),
        "a generator of tensors": iter(pieces),
        "ints and lists mixed": [*ids[:7].tolist(), ids[7:90].tolist(), *ids[90:]],
    }


@pytest.mark.parametrize(
    "source",
    [
        "a list",
        "a tensor",
        "a memory-mapped tensor",
        "an array",
        "a generator of ints",
        "a generator of lists",
        "a generator of tensors",
        "ints and lists mixed",
    ],
)
@pytest.mark.parametrize("chunk", [9, 100])
def test_ids_may_come_from_anywhere(source: str, chunk: int, tmp_path: Path) -> None:
    model, ids = tiny(), text(1, 100)
    with METHODS["lm_infinite"].on(model):
        seen: list[int] = []
        reader = stream(model, sources(ids[0], tmp_path)[source], chunk=chunk, progress=seen.append)
        assert seen == [*range(chunk, 100, chunk), 100]
        close(reader.logits, logits_of(model, ids)[0, -1])


def test_no_more_than_a_chunk_is_taken_ahead() -> None:
    taken, ahead = 0, []

    def ids() -> Iterator[int]:
        nonlocal taken
        for token in text(1, 100)[0].tolist():
            taken += 1
            yield token

    model = tiny()
    with METHODS["lm_infinite"].on(model):
        stream(model, ids(), chunk=8, progress=lambda position: ahead.append(taken - position))
    assert set(ahead) == {0}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 4, VOCAB], rf"token 2 is {VOCAB}, outside the model's vocabulary \(0 to 60\)"),
        ([3, -1], "token 1 is -1, outside"),
        ([3, 4.0], "at token 1 there is 4.0, of type float"),
        ([3, True], "at token 1 there is True, of type bool"),
        ([3, [4, [5]]], r"at token 1 there is \[5\], of type list"),
        ("hello", "tokenise the text first"),
        ({"input_ids": [3]}, r'pass its \["input_ids"\]'),
        (7, "ids is of type int"),
        (text(1, 8), r"shape \(1, 8\) and dtype int64.*Of a batch of one pass ids\[0\]"),
        (text(2, 8), r"shape \(2, 8\)"),
        ([text(2, 8)], "no batch"),
        (torch.rand(8), "dtype float32"),
    ],
)
def test_wrong_ids_are_named_and_leave_the_reader_usable(ids: Any, message: str) -> None:
    model = tiny()
    with METHODS["lm_infinite"].on(model):
        reader = stream(model, [5, 6])
        with pytest.raises(ValueError, match=message):
            reader.read(ids)
        assert reader.position == 2
        reader.read([7])
        close(reader.logits, logits_of(model, torch.tensor([[5, 6, 7]]))[0, -1])


def test_iterator_that_fails_leaves_the_chunks_before_it() -> None:
    model, ids = tiny(), text(1, 100)

    def broken() -> Iterator[int]:
        yield from ids[0, :45].tolist()
        raise OSError("the disk is gone")

    with METHODS["lm_infinite"].on(model):
        with pytest.raises(
            SourceError, match=r"OSError: the disk is gone \(after 45 ids\).*stands at 40.*the 5 ids"
        ) as e:
            stream(model, broken(), chunk=8)
        reader = e.value.reader
        assert isinstance(e.value.__cause__, OSError)
        reader.read(ids[0, reader.position :])
        assert reader.position == 100
        close(reader.logits, logits_of(model, ids)[0, -1])


# -- writing -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 5, "repetition_penalty": 1.5},
        {"min_p": 0.1, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_sampling_is_that_of_generate(settings: dict[str, Any]) -> None:
    model, ids = tiny(), text(1, 40)
    with METHODS["lm_infinite"].on(model):
        torch.manual_seed(1)
        expected = generated(model, ids, do_sample=True, max_new_tokens=30, **settings)
        torch.manual_seed(1)
        assert list(stream(model, ids[0]).generate(do_sample=True, max_new_tokens=30, **settings)) == expected
        assert list(stream(model, ids[0]).generate(**GREEDY)) != expected


def test_penalties_see_the_recent_ids_only() -> None:
    model, ids = tiny(), text(1, 40)
    with METHODS["lm_infinite"].on(model):
        seen: list[int] = []

        def look(ids_1L: Tensor, scores: Tensor) -> Tensor:
            seen.append(ids_1L.shape[1])
            return scores

        reader = stream(model, ids[0], recent=16)
        list(reader.generate(**GREEDY, logits_processor=[look]))
        assert seen == [16] * 30


def test_end_of_sequence_comes_out_and_is_the_last() -> None:
    model, ids = tiny(), text(1, 40)
    with METHODS["lm_infinite"].on(model):
        free = list(stream(model, ids[0]).generate(**GREEDY))
        end = free[10]
        until = free[: free.index(end) + 1]
        reader = stream(model, ids[0])
        assert list(reader.generate(do_sample=False, eos_token_id=[end, 0])) == until
        assert reader.position == 40 + len(until)
        model.generation_config.eos_token_id = end
        assert list(stream(model, ids[0]).generate(do_sample=False)) == until


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams=2: a stream cannot rewind: it keeps one sequence"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"min_new_tokens": 3}, "min_new_tokens=3"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number, at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5: expected a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3': expected a whole number"),
        ({"max_new_token": 3}, "max_new_token: no such generation setting"),
    ],
)
def test_settings_that_a_stream_cannot_have_are_named(settings: dict[str, Any], message: str) -> None:
    model = tiny()
    with METHODS["lm_infinite"].on(model), pytest.raises(ValueError, match=message):
        stream(model, [3, 4]).generate(**settings)


NO_SIZES = [(name, wrong) for name in ("chunk", "recent") for wrong in (0, -1, 1.5, "8", True)]


# for `chunk` None is the default: tests/streaming/test_chunks.py
@pytest.mark.parametrize(("name", "wrong"), [*NO_SIZES, ("recent", None)])
def test_sizes_that_are_none_are_refused(name: str, wrong: Any) -> None:
    model = tiny()
    words = re.escape(f"{name}={wrong!r}: expected a whole number of tokens")
    with METHODS["lm_infinite"].on(model), pytest.raises(ValueError, match=words):
        stream(model, [3, 4], **{name: wrong})


def test_a_progress_that_cannot_be_called_is_refused_before_anything_is_read() -> None:
    model, taken = tiny(), iter([3, 4])
    with METHODS["lm_infinite"].on(model), pytest.raises(ValueError, match="progress=3: expected a function"):
        stream(model, taken, progress=3)  # type: ignore[arg-type]
    assert list(taken) == [3, 4]


def test_gradients_are_as_they_were_for_who_takes_the_tokens() -> None:
    model = tiny()
    with METHODS["lm_infinite"].on(model):
        for _ in stream(model, [3, 4]).generate(max_new_tokens=2, do_sample=False):
            assert torch.is_grad_enabled()


# -- models ------------------------------------------------------------------------------------------------------------
