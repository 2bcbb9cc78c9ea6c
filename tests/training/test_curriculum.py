"""Dataset Decomposition: no target lost or repeated, one bucket and the same tokens a step, the same order again."""

from __future__ import annotations

import logging
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler
from transformers import TrainingArguments

from hf_longctx.training.curriculum import (
    CURRICULA,
    BatchSamplerTrainer,
    BucketSampler,
    Decomposed,
    decompose,
)
from hf_longctx.training.curriculum.cut import cut
from hf_longctx.training.curriculum.odds import odds_of
from tests.tiny import tiny


def documents(count: int = 60, seed: int = 0, longest: int = 300) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 60) for _ in range(rng.randrange(2, longest))] for _ in range(count)]


@pytest.mark.parametrize("draw", [None, random.Random(3)])
def test_pieces_of_a_document(draw: random.Random | None) -> None:
    for tokens in [1, 2, 8, 9, 10, 64, 65, 66, 128, 129, 130, 131, *range(200, 900, 37)]:
        pieces = cut(tokens, 8, 64, draw)
        ends = [0, *(start + size for start, size in pieces)]
        assert [start for start, _ in pieces] == ends[:-1]
        assert all(8 <= size <= 64 and size & (size - 1) == 0 for _, size in pieces)
        assert 0 <= tokens - 1 - ends[-1] < 8
        if draw is None:
            assert [size for _, size in pieces] == sorted((size for _, size in pieces), reverse=True)


def test_the_equal_draw_gives_every_bucket_the_same_tokens() -> None:
    pieces = cut(4_000_000, 8, 64, random.Random(0))
    tokens = Counter[int]()
    for _, size in pieces:
        tokens[size] += size
    assert [n / 1e6 for n in tokens.values()] == pytest.approx([1.0] * 4, rel=0.03)


def test_a_batch_is_inputs_and_their_next_tokens() -> None:
    text = [random.Random(0).randrange(60) for _ in range(200)]
    made = decompose([text], shortest=8, longest=64, draw="longest")
    assert made.sizes == [64, 64, 64]
    batch = Decomposed.collate([made[0], made[2]])
    assert batch["input_ids"].tolist() == [text[:64], text[128:192]]
    assert batch["shift_labels"].tolist() == [text[1:65], text[129:193]]
    model = tiny("llama")
    logits = model(batch["input_ids"], use_cache=False).logits
    right = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    assert float(model(**batch, use_cache=False).loss) == pytest.approx(float(right), rel=1e-6)


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hf_longctx"):
        made = decompose([[3] * 5, [4] * 8, [5] * 100], shortest=8, longest=64, draw="longest")
    assert made.sizes == [64, 32]
    assert "14 tokens in rests below 8 are left out; 2 of 3 documents are shorter than that" in caplog.text
    assert "by size 32: 1 (33.3%), 64: 1 (66.7%)" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shortest": 8, "longest": 512}, r"no document has the 513 tokens of the longest piece; the longest has 100"),
        ({"shortest": 6, "longest": 64}, "shortest=6: expected a power of two"),
        ({"shortest": "8", "longest": 64}, "shortest='8': expected a power of two"),
        ({"shortest": 8, "longest": None}, "longest=None: expected a power of two"),
        ({"shortest": 64, "longest": 8}, "expected shortest <= longest"),
        ({"shortest": 8, "longest": 64, "draw": "some"}, "'equal' or 'longest'"),
    ],
)
def test_documents_that_cannot_be_cut(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompose([[3] * 100], **settings)


def sizes(seed: int = 0) -> list[int]:
    return decompose(documents(seed=seed), shortest=8, longest=64, seed=seed).sizes


@pytest.mark.parametrize("curriculum", CURRICULA)
@pytest.mark.parametrize("cycles", [1, 3, 8])
@pytest.mark.parametrize("together", [1, 4])
def test_steps(curriculum: str, cycles: int, together: int) -> None:
    given = sizes()
    sampler = BucketSampler(given, 64, curriculum=curriculum, cycles=cycles, together=together)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for at in range(0, len(batches), together):
        step = [piece for batch in batches[at : at + together] for piece in batch]
        assert len({given[piece] for piece in step}) == 1
        assert all(sum(given[piece] for piece in batch) == 64 for batch in batches[at : at + together])
    counts = Counter(piece for batch in batches for piece in batch)
    assert max(counts.values()) == 1
    # what waits at the end of a pass is less than a step of each bucket
    waiting = Counter(given[piece] for piece in range(len(given)) if piece not in counts)
    assert all(size * count < 64 * together for size, count in waiting.items())


@pytest.mark.parametrize("cycles", [1, 5])
def test_nothing_is_lost_or_repeated_over_epochs(cycles: int) -> None:
    given = sizes()
    sampler = BucketSampler(given, 128, curriculum="grow-p2", cycles=cycles)
    counts = Counter(piece for _ in range(9) for batch in sampler for piece in batch)
    # a bucket's pieces come once a pass, so at any time their counts differ by one, or by two around a pass's end
    for size in set(given):
        seen = [counts[piece] for piece in range(len(given)) if given[piece] == size]
        assert max(seen) - min(seen) <= 2
        assert sum(seen) * size % 128 == 0
    assert min(counts[piece] for piece in range(len(given))) >= 7


def test_short_ones_come_first_when_lengths_grow() -> None:
    given = sizes()

    def mean_of_halves(curriculum: str) -> tuple[float, float]:
        lengths = [given[batch[0]] for batch in BucketSampler(given, 64, curriculum=curriculum)]
        half = len(lengths) // 2
        return sum(lengths[:half]) / half, sum(lengths[half:]) / (len(lengths) - half)

    growing, shrinking = mean_of_halves("grow-p2"), mean_of_halves("shrink-p2")
    assert growing[0] < 0.7 * growing[1]
    assert shrinking[1] < 0.8 * shrinking[0]


def test_the_published_odds() -> None:
    lengths = [256, 512, 1024, 2048, 4096, 8192]
    assert list(odds_of("grow-p2", lengths).values()) == [32, 16, 8, 4, 2, 1]
    assert list(odds_of("grow-linear", lengths).values()) == [6, 5, 4, 3, 2, 1]
    assert list(odds_of("uniform", lengths).values()) == [1] * 6
    assert odds_of({8: 3, 16: 1}, [8, 16]) == {8: 3.0, 16: 1.0}


def test_the_order_goes_on_where_it_stood() -> None:
    given = sizes()
    one = BucketSampler(given, 64, cycles=2, seed=5)
    whole = [*one, *one]
    for taken in (0, 7, len(one), len(one) + 3):
        first = BucketSampler(given, 64, cycles=2, seed=5)
        stream = (batch for _ in range(2) for batch in first)
        before = list(islice(stream, taken))
        other = BucketSampler(given, 64, cycles=2, seed=5)
        other.load_state_dict(first.state_dict())
        left = 2 if taken < len(one) else 1
        assert before + [batch for _ in range(left) for batch in other] == whole
    assert whole[: len(one)] != whole[len(one) :]
    for changed in ({"seed": 6}, {"curriculum": "grow-p2"}, {"cycles": 3}, {"together": 2}):
        with pytest.raises(ValueError, match="the state is of other data or settings"):
            BucketSampler(given, 64, **{"cycles": 2, "seed": 5, **changed}).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="the state is of other data or settings"):
        BucketSampler(given[:-1], 64, cycles=2, seed=5).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 32}, "tokens=32: the longest piece has 64. Expected a multiple"),
        ({"tokens": 96}, "tokens=96: the longest piece has 64. Expected a multiple"),
        ({"tokens": 1 << 20}, "no bucket fills a step of 1048576 tokens"),
        ({"tokens": "64"}, "tokens='64': the longest piece has 64"),
        ({"cycles": 0}, "cycles=0"),
        ({"cycles": "2"}, "cycles='2', together=1: expected whole numbers"),
        ({"together": None}, "cycles=1, together=None: expected whole numbers"),
        ({"curriculum": "up"}, "curriculum='up': expected uniform, grow-p2"),
        ({"curriculum": {8: 1.0}}, r"no odds above 0 for pieces of \[16, 32, 64\]"),
    ],
)
def test_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketSampler(sizes(), **{"tokens": 64, **changes})


@pytest.mark.parametrize("given", [None, [], [0, 8], ["8"]])
def test_sizes_that_are_none(given: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes=.*: expected how many tokens each piece has.*decompose\(...\).sizes"):
        BucketSampler(given, 64)


@pytest.mark.parametrize("state", [None, {}, {"epoch": 0, "taken": 0}])
def test_a_state_of_something_else(state: Any) -> None:
    sampler = BucketSampler(np.array(sizes()), 64)
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=r"it lacks .*order.* Give what state_dict\(\) of a BucketSampler"):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before


def trainer(folder: str, made: Decomposed, together: int = 2, **more: Any) -> BatchSamplerTrainer:
    args = TrainingArguments(
        folder, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, gradient_accumulation_steps=2,
        save_strategy="steps", learning_rate=1e-3, seed=1, **more,
    )  # fmt: skip
    sampler = BucketSampler(made.sizes, 64, curriculum="grow-p2", together=together)
    return BatchSamplerTrainer(
        model=tiny("llama"), args=args, train_dataset=made, data_collator=Decomposed.collate, batch_sampler=sampler
    )


class Watched(BatchSamplerTrainer):
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def test_trainer_and_its_resumption_in_the_second_epoch(tmp_path: Path) -> None:
    made = decompose(documents(12), shortest=8, longest=64)
    runs = []
    for folder, resumed in (("whole", False), ("whole", True)):
        one = trainer(str(tmp_path / folder), made, save_steps=1, num_train_epochs=2)
        steps = len(one.batch_sampler) // 2
        one.__class__, one.seen = Watched, []
        at = steps + 2  # in the second epoch
        one.train(resume_from_checkpoint=str(tmp_path / folder / f"checkpoint-{at}") if resumed else None)
        assert one.state.global_step == 2 * steps
        losses = [log["loss"] for log in one.state.log_history if "loss" in log]
        runs.append((one.seen, losses, one.model.lm_head.weight.detach().clone()))
    whole, parts = runs
    assert parts[0] == whole[0][2 * at :]
    assert parts[1] == whole[1]
    assert torch.equal(parts[2], whole[2])
    assert all(len(batch) * len(batch[0]) == 64 for batch in whole[0])


def test_a_step_of_two_lengths_is_refused(tmp_path: Path) -> None:
    made = decompose(documents(12), shortest=8, longest=64)
    with pytest.raises(ValueError, match=r"together=1: a step here has 2 batches .* Make the sampler with together=2"):
        trainer(str(tmp_path), made, together=1)


def test_another_sampler_is_refused(tmp_path: Path) -> None:
    made = decompose(documents(12), shortest=8, longest=64)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    other: Any = BatchSampler(range(4), 2, False)
    with pytest.raises(ValueError, match=r"batch_sampler=<.*: expected hf_longctx.training.BucketSampler"):
        BatchSamplerTrainer(model=tiny("llama"), args=args, train_dataset=made, batch_sampler=other)
