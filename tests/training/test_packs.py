"""Documents in packs: none lost, none merged, nothing left out silently."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from hf_longctx.training.curriculum import decompose
from hf_longctx.training.packing import PackCollator, pack, read_chats
from hf_longctx.training.packing.fit import best_fit
from tests.tiny import tiny


def documents(count: int = 40, longest: int = 60, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 60) for _ in range(rng.randrange(2, longest))] for _ in range(count)]


def best_fit_by_search(lengths: list[int], capacity: int) -> list[list[int]]:
    """All bins are looked at for each length."""
    packs: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        room = {i: capacity - sum(lengths[m] for m in pack) for i, pack in enumerate(packs)}
        fits = {i: r for i, r in room.items() if r >= lengths[n]}
        if fits:
            packs[min(fits, key=lambda i: fits[i])].append(n)
        else:
            packs.append([n])
    return packs


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_is_that_of_a_search(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.randrange(10, 100)
    lengths = [rng.randint(1, capacity) for _ in range(rng.randrange(80))]
    found, right = best_fit(lengths, capacity), best_fit_by_search(lengths, capacity)
    assert sorted(n for pack in found for n in pack) == list(range(len(lengths)))
    # which of two equally full packs takes a length does not matter
    assert sorted(sum(lengths[n] for n in pack) for pack in found) == sorted(
        sum(lengths[n] for n in pack) for pack in right
    )


def test_a_length_that_fits_nowhere() -> None:
    with pytest.raises(ValueError, match="a length of 11: expected 1 to 10"):
        best_fit([3, 11], 10)


def unpacked(rows: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    found = []
    for row in rows:
        ids, labels = row["input_ids"].split(row["seq_lengths"]), row["labels"].split(row["seq_lengths"])
        found += [(i.tolist(), l.tolist()) for i, l in zip(ids, labels, strict=True)]
    return sorted(found)


def test_every_document_is_in_one_pack() -> None:
    given = documents()
    packs = pack(given, 64)
    assert unpacked([packs[n] for n in range(len(packs))]) == sorted((d, [-100, *d[1:]]) for d in given)
    assert all(len(packs[n]["input_ids"]) <= 64 for n in range(len(packs)))
    assert "40 documents" in packs.report()
    assert packs.left_out() == ""


def test_labels_of_their_own() -> None:
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": torch.tensor([9, 10])}]
    assert unpacked([pack(rows, 8)[0]]) == [([5, 6, 7, 8], [-100, -100, 7, 8]), ([9, 10], [-100, 10])]


def test_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 documents are longer than a pack of 16 tokens: numbers 1 \(the longest"):
        pack([[3] * 16, [4] * 17], 16)


def test_too_long_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        packs = pack([[3] * 16, [4] * 17, [5] * 30], 16, too_long="drop")
    assert "2 documents of 47 tokens are longer than 16 and were dropped: numbers 1, 2" in caplog.text
    assert unpacked([packs[0]]) == [([3] * 16, [-100] + [3] * 15)]
    assert len(packs) == 1


@pytest.mark.parametrize("length", [2, 3, 7, 16])
def test_no_target_is_lost_by_splitting(length: int, caplog: pytest.LogCaptureFixture) -> None:
    given = [list(range(3, 3 + n)) for n in (2, 5, 16, 17, 31, 50)]
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        packs = pack(given, length, too_long="split")
    assert "were split: numbers" in caplog.text
    targets = [label for _, labels in unpacked([packs[n] for n in range(len(packs))]) for label in labels]
    assert sorted(label for label in targets if label != -100) == sorted(x for d in given for x in d[1:])


def test_documents_without_targets(caplog: pytest.LogCaptureFixture) -> None:
    rows = [[3], [], {"input_ids": [4, 5], "labels": [4, -100]}, [6, 7]]
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        packs = pack(rows, 8)
    assert "3 documents have no target and were left out: numbers 0, 1, 2" in caplog.text
    assert unpacked([packs[0]]) == [([6, 7], [-100, 7])]
    with pytest.raises(ValueError, match="no target tokens in 3 documents"):
        pack(rows[:3], 8)
    masked = {"input_ids": list(range(20)), "labels": [-100] * 12 + [1] * 8}
    packs = pack([masked], 10, too_long="split")
    assert "1 pieces of split documents have no target" in packs.left_out()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"text": "a"}], "expected input_ids"),
        (["a text"], "document 0 is str: expected token ids"),
        ([[[1, 2]]], "document 0 is a list of list"),
        ([{"input_ids": [1, 2], "labels": [1]}], "1 labels for 2 tokens"),
        ([3, 4], "document 0 is int"),
    ],
)
def test_what_is_no_document(given: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(given, 8)


@pytest.mark.parametrize("given", [None, 5])
def test_nothing_to_go_through(given: Any) -> None:
    for made_of in (lambda: pack(given, 8), lambda: decompose(given, shortest=2, longest=4)):
        with pytest.raises(ValueError, match=f"documents={given}: expected documents to go through"):
            made_of()


def test_settings() -> None:
    wrong: list[tuple[Any, Any]] = [(1, "drop"), (8, "cut"), ("8", "drop"), (None, "drop"), (8.0, "drop"), (8, None)]
    for length, too_long in wrong:
        with pytest.raises(ValueError, match=f"length={length!r}.*at least 2, and one of split, drop, refuse"):
            pack([[1, 2]], length, too_long=too_long)
    assert len(pack([[1, 2]], np.int64(8))) == 1


def test_batches_are_those_of_transformers() -> None:
    given = documents(6)
    ours = PackCollator(cu_seq_lens=True)([{"input_ids": ids} for ids in given])
    stock = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": ids} for ids in given])
    assert ours.pop("use_cache") is False
    assert ours.keys() == stock.keys()
    for name, right in stock.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(right)), name
        assert getattr(ours[name], "dtype", int) == getattr(right, "dtype", int)


def test_rows_of_other_packs() -> None:
    by_lengths = PackCollator()([{"input_ids": [5, 6, 7], "seq_lengths": [1, 2]}])
    by_positions = PackCollator()([{"input_ids": [5, 6, 7], "position_ids": [0, 0, 1]}])
    for batch in (by_lengths, by_positions):
        assert batch["position_ids"].tolist() == [[0, 0, 1]]
        assert batch["labels"].tolist() == [[-100, -100, 7]]
    with pytest.raises(ValueError, match="seq_lengths sum to 4: expected 3"):
        PackCollator()([{"input_ids": [5, 6, 7], "seq_lengths": [2, 2]}])


def test_stock_models_keep_the_documents_of_a_batch_apart() -> None:
    model, given = tiny("llama").train(), documents(9, 30)
    packs = pack(given, 64)
    batch = PackCollator()([packs[n] for n in range(len(packs))])
    out = model(**batch)
    nll = sum(
        float(model(torch.tensor([d]), labels=torch.tensor([d]), use_cache=False).loss) * (len(d) - 1) for d in given
    )
    assert float(out.loss) == pytest.approx(nll / sum(len(d) - 1 for d in given), rel=1e-5)


def test_trainer_takes_them(tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[], logging_steps=1
    )
    trainer = Trainer(model=tiny("llama"), args=args, train_dataset=pack(documents(), 64), data_collator=PackCollator())
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "position_ids", "use_cache"}
    assert int((batch["position_ids"] == 0).sum()) > 2
    trainer.train()
    assert all(log["loss"] > 0 for log in trainer.state.log_history if "loss" in log)


def test_chats_in_files(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(chat) + "\n\n" + json.dumps(chat) + "\n")
    assert list(read_chats(file)) == [chat, chat]
    for line, message in {
        "{": "line 2 is not JSON",
        "[]": "line 2 has no messages",
        '{"text": "a"}': r"line 2 has no messages \(\['text'\]\)",
        '{"messages": [{"role": "user"}]}': "line 2 has a message without a role and a content",
        '{"messages": [{"role": "user", "content": "a"}]}': "line 2 has no message of the role 'assistant'",
    }.items():
        file.write_text(json.dumps(chat) + "\n" + line)
        with pytest.raises(ValueError, match=message):
            list(read_chats(file))
    for nowhere in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"there is no such file\. Give one with a chat a line: expected"):
            list(read_chats(nowhere))
