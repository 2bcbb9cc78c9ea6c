"""What recipes/long_writer learns from: whole answers with their ends, short ones first, and settings that can work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerControl, TrainerState

from hf_longctx.evaluation.tasks.long_output import make, sft_row
from hf_longctx.hub.resolve import load_tokenizer
from hf_longctx.parallel.model.documents import IGNORED
from hf_longctx.storage.cells import CellStore
from hf_longctx.storage.files import write_json_lines
from recipes.clock import Clock
from recipes.config import merged
from recipes.long_writer import data
from recipes.long_writer.curriculum import ShortFirst, competence, packs_by_length
from recipes.long_writer.data import Fitting, asked, parts, sft_documents
from recipes.long_writer.progress import Progress
from recipes.long_writer.settings import DEFAULT, LATER, checked, read_config
from recipes.long_writer.stage import decides
from recipes.resuming import fingerprints

LEARNT = {"mask_truncated_completions": False}  # from answers that did not end


@pytest.mark.parametrize("variant", [None, *yaml.safe_load(DEFAULT.read_text())["variants"]])
def test_the_config_and_its_variants_can_work(variant: str | None) -> None:
    config = read_config(DEFAULT, variant)
    assert config["out"] == ("long-writer" if variant is None else f"long-writer-{variant}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"problms": 3}}, "sft: problms: not a setting of this recipe. Did you mean 'problems'?"),
        ({"grpo": {"generation": "fast"}}, "generation: fast: expected one of graphs, static, continuous, plain"),
        ({"grpo": {"rewards": {"beauty": 1}}}, "expected weights of verifier, length, ended_length, repetition, "),
        (
            {"score": {"shortest": 5000}},
            "score: shortest: 5000: expected words, at most those of longest, 1500",
        ),
        ({"score": {"shortest": 0.5}}, "score: shortest: 0.5: expected words, at most those of longest, 1500"),
        ({"dpo": {"loop_tokens": 0}}, "dpo: loop_tokens: 0: expected a number of tokens, at least 1, or null"),
        ({"dpo": {"loop_tokens": 1.5}}, "dpo: loop_tokens: 1.5: expected a number of tokens, at least 1, or null"),
        ({"grpo": {"loop_tokens": -1}}, "grpo: loop_tokens: -1: expected a number of tokens, at least 1, or null"),
        ({"grpo": {"loop_tokens": 9, "generation": "plain"}}, "loop_tokens: 9: expected null with generation: plain"),
        ({"grpo": {"loop_tokens": 9}}, "loop_tokens: 9: expected null with training: mask_truncated_completions: true"),
        (
            {"grpo": {"loop_tokens": 9, "training": LEARNT}},
            "loop_tokens: 9: expected rewards without length, which pays",
        ),
        ({"dpo": {"rejected": "short"}}, "dpo: rejected: short: expected one of random, loops"),
        ({"sft": {"packs": 3}}, "sft: packs_per_step: 8: expected a multiple of the 3 of a forward"),
        ({"grpo": {"answers": 24}}, "the answers of a step: 64: expected a multiple of the 24"),
        ({"tasks": {"tokens": [90, 60]}}, "expected the shorter and the longer length"),
        ({"sft": {"curriculum": {"start": 0.0}}}, "start 0.0, full 0.5: expected parts, above 0"),
        ({"chain": {"sft": 0.95, "dpo": 0.1}}, "leave some for the scores"),
        ({"score": 3}, "score: 3: expected tasks, tokens"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        checked(merged(read_config(DEFAULT), changes))
    assert said in str(error.value)


def test_missing_settings_and_variants_are_named(tmp_path: Path) -> None:
    config = read_config(DEFAULT)
    del config["dpo"]["samples"]
    with pytest.raises(ValueError, match="the config lacks dpo: samples"):
        checked(config)
    with pytest.raises(ValueError, match=r"--variant s_l: config\.yaml has no s_l; it has s_l_alone, sequence"):
        read_config(DEFAULT, "s_l")


def test_a_config_from_before_later_settings_is_the_same_run(tmp_path: Path) -> None:
    """Without the keys it works, and a training or scores that began without them are gone on with."""
    now = read_config(DEFAULT, "grpo_scored", out=str(tmp_path / "out"))
    given = {name: dict(one) if isinstance(one, dict) else one for name, one in now.items()}
    for section, later in LATER.items():
        for name in later:
            del given[section][name]
    told = {stage: fingerprints({**given, "model": "m"}) for stage in ("dpo", "grpo")}
    assert checked(given) == now
    for stage, was in told.items():
        own = fingerprints(decides(now, stage, "m"))
        assert own == {key: was[key] for key in own}
        cut = merged(now, {stage: {"loop_tokens": 9}})
        assert fingerprints(decides(cut, stage, "m"))[stage] != was[stage]
    store = CellStore(tmp_path / "out/scores/sft.jsonl", {key: one for key, one in given.items() if key != "out"})
    store.run(["sft", "tasks 60"], lambda: {"value": 1})
    assert "tasks 60" in Progress(now, [], resume=True).sizes("sft")


def test_what_pays_for_a_cut_counts_only_by_its_weight() -> None:
    rewards = {"verifier": 1.0, "length": 0.0, "ended_length": 1.0}
    config = read_config(DEFAULT)
    config["grpo"] |= {"loop_tokens": 9, "rewards": rewards, "training": config["grpo"]["training"] | LEARNT}
    assert checked(config)["grpo"]["loop_tokens"] == 9


def test_the_end_of_every_answer_is_a_target_though_it_is_the_padding(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    documents = sft_documents(tokenizer, config).rows
    assert len(documents) == 24 + 12
    for one in documents:
        targets = [label for label in one["labels"] if label != IGNORED]
        assert targets[-1] == end
        assert targets.count(end) == 1
    packs = packs_by_length(documents, config["context"])
    assert sum(label == end for row in packs for label in row["labels"]) == 36


def test_answers_too_long_are_counted_named_and_never_cut(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    whole = [one["input_ids"].tolist() for one in sft_documents(tokenizer, config).rows]
    context = sorted(map(len, whole))[-5]
    found = sft_documents(tokenizer, config | {"context": context})
    assert [one["input_ids"].tolist() for one in found.rows] == [ids for ids in whole if len(ids) <= context]
    report = found.report("answers")
    assert report["kept"] + report["too long"] == 36
    said = found.said("answers")
    assert f"{len(found.too_long)} answers are longer than the context of {context} tokens and were left out" in said
    assert "problem" in said
    with pytest.raises(ValueError, match="no answers to learn from: 36 answers are longer than the context of 8"):
        sft_documents(tokenizer, config | {"context": 8}).report("answers")


def test_several_processes_make_the_same_tokens(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(config["model"])
    right = sft_documents(tokenizer, config)
    monkeypatch.setattr(data, "ROWS_OF_A_PROCESS", 15)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = sft_documents(tokenizer, config)
    assert [set(row) for row in found.rows] == [{"input_ids", "labels"}] * len(right.rows)
    for row, other in zip(found.rows, right.rows, strict=True):
        assert all(row[name].tolist() == other[name].tolist() for name in row)
    assert found.mark() == right.mark() != Fitting(9, right.rows[1:]).mark()


def test_a_chat_that_the_template_cannot_end_is_named(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match=r"numbered, problem 0: .* ends an answer with no special token"):
        sft_documents(tokenizer, config)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "bad.jsonl, line 2 is not JSON"),
        ('{"text": "a book"}', r"bad.jsonl, line 2 has no messages \(\['text'\]\)"),
        ('{"messages": [{"role": "user", "content": "ask"}]}', "line 2 has no message of the role 'assistant'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 2 has a message without a role and a content"),
    ],
)
def test_files_that_are_no_chats_are_named(line: str, said: str, config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(sft_row(make('ledger', 60)))}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        sft_documents(load_tokenizer(config["model"]), config | {"chats": [str(file)]})


@pytest.mark.parametrize("words", [0, "many", True, 2.5])
def test_asked_words_that_are_no_number(words: Any, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "rows.jsonl", [sft_row(make("ledger", 60)) | {"words": words}])
    with pytest.raises(ValueError, match=r"rows.jsonl, chat 1: words is .*: expected a whole number of words"):
        list(asked([str(tmp_path / "rows.jsonl")]))


def test_a_chat_in_two_parts(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    row = sft_row(make("numbered", 60))
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    messages = [*before, *row["messages"]]
    prompt, answer = parts(tokenizer, {"messages": messages})
    asks = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(prompt) == asks
    assert tokenizer.decode(answer) == row["messages"][-1]["content"] + tokenizer.eos_token


def test_competence_grows_from_its_start_to_all() -> None:
    assert competence(0, 0.1, 0.5) == pytest.approx(0.1)
    assert competence(0.25, 0.1, 0.5) == pytest.approx(math.sqrt(0.5 * (1 - 0.01) + 0.01))
    assert competence(0.5, 0.1, 0.5) == competence(1, 0.1, 0.5) == 1
    assert competence(0, 0.3, 0) == 1


def test_short_answers_come_first_and_none_twice_before_all() -> None:
    def drawn(seed: int) -> list[int]:
        return list(ShortFirst(40, 60, lambda draw: draw / 60, start=0.1, full=0.5, seed=seed))

    found = drawn(0)
    assert max(found[:2]) < 0.1 * 40 + 4
    assert all(number < math.ceil(competence(at / 60, 0.1, 0.5) * 40) for at, number in enumerate(found))
    assert sorted(found[:40]) == list(range(40))
    assert found == drawn(0) != drawn(1)


def test_the_curriculum_goes_by_the_time_where_that_is_shorter() -> None:
    """All packs may be drawn in the end, though a tenth of the steps was taken."""
    late = ShortFirst(40, 400, lambda draw: 0.0 if draw < 5 else 1.0, start=0.1, full=0.5, seed=0)
    assert max(list(late)[:5]) < 4
    assert max(list(late)[5:40]) > 30


def test_packs_are_in_the_order_of_their_answers(config: dict[str, Any]) -> None:
    documents = sft_documents(load_tokenizer(config["model"]), config).rows
    packs = packs_by_length(documents, config["context"])
    assert sum(len(row["seq_lengths"]) for row in packs) == len(documents)

    def longest(row: dict[str, Any]) -> int:
        runs, last = [0], IGNORED
        for label in row["labels"]:
            if label == IGNORED and last != IGNORED:
                runs.append(0)
            runs[-1] += label != IGNORED
            last = label
        return max(runs)

    sizes = [longest(row) for row in packs]
    third = len(sizes) // 3
    assert max(sizes[:third]) <= min(sizes[-third:])


def test_a_training_by_time_that_is_resumed_has_the_same_packs(tmp_path: Path) -> None:
    """It is another time of the clock when the packs before the checkpoint are drawn again."""

    def drawn(clock: Clock) -> Iterator[int]:
        return iter(ShortFirst(40, 20, clock.seen, start=0.1, full=0.5, seed=0))

    state, control = TrainerState(), TrainerControl()
    first = Clock(1000, 10.0, tmp_path / "seconds.json")
    first.on_train_begin(None, state, control)
    packs = drawn(first)
    short = [next(packs) for _ in range(5)]
    first._begun -= 8  # seconds later
    long = [next(packs) for _ in range(10)]
    assert max(short) < 8 < max(long)
    first.on_save(None, state, control)
    state.global_step = 15
    again = Clock(1000, 10.0, tmp_path / "seconds.json")
    again.on_train_begin(None, state, control)
    resumed = drawn(again)
    assert [next(resumed) for _ in range(15)] == short + long
    assert again.passed == pytest.approx(8, abs=1)
