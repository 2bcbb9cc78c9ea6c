"""Rewards, pairs, scores, their comparison, and the card of recipes/long_writer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_longctx.evaluation.benchmarks.longwriter import n_words
from hf_longctx.evaluation.tasks.long_output import grpo_row, make
from hf_longctx.evaluation.tasks.long_output import reward as reward_of
from hf_longctx.hub import load
from hf_longctx.hub.resolve import load_tokenizer
from hf_longctx.storage.files import write_json_lines
from recipes.long_writer import card
from recipes.long_writer import pairs as pairs_module
from recipes.long_writer.compare import paired
from recipes.long_writer.data import Fitting
from recipes.long_writer.decode import Written
from recipes.long_writer.examples import examples
from recipes.long_writer.figures import gained, risen, rows
from recipes.long_writer.length_pairs import Sampled, length_pairs
from recipes.long_writer.loops import cut_loop, loop_start
from recipes.long_writer.pairs import by_length, verified
from recipes.long_writer.progress import Progress
from recipes.long_writer.rewards import Reward
from recipes.long_writer.rollouts import Rollouts
from recipes.long_writer.score import Scores

from .made import scores

END = 7
LOOP = "rejected answers that loop"
WEIGHTS = {"verifier": 1.0, "length": 1.0, "repetition": 1.0, "unended": 0.5}


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_each_part_of_the_reward_judges_the_rows_that_it_can() -> None:
    reward = Reward({END}, WEIGHTS, 2)
    problem = make("numbered", 60)
    loop = "the same eight words are here once more " * 3
    given: dict[str, Any] = {
        "completions": said(problem.answer, "nothing", "one two three four five six", loop),
        "completion_ids": [[1, END], [1, 2], [3, END], [4, 4]],
        "problem": [grpo_row(problem)["problem"]] * 2 + [None, None],
        "words": [None, None, 12, 24],
    }
    assert reward.verifier(**given) == [
        reward_of(problem, problem.answer, True),
        reward_of(problem, "nothing", False),
        None,
        None,
    ]
    assert reward.length(**given) == [None, None, pytest.approx(0.5), 1.0]  # S_l pays for what was cut
    assert reward.ended_length(**given) == [None, None, pytest.approx(0.5), 0.0]
    assert reward.unended(**given) == [0.0, -1.0, 0.0, -1.0]
    assert reward.repetition(**given)[2:] == [0.0, pytest.approx(-9 / 17)]
    functions, weights = reward.functions()
    assert [one.__name__ for one in functions] == [*WEIGHTS, "watch"]
    assert weights == [*WEIGHTS.values(), 0.0]


def test_groups_of_equal_rewards_are_counted() -> None:
    reward, logged = Reward({END}, {"length": 1.0, "unended": 0.5}, 2), dict[str, float]()
    given: dict[str, Any] = {
        "completions": said("one two", "one two", "one", "one two"),
        "completion_ids": [[1, END], [1, END], [1, END], [1, 2]],
        "words": [2, 2, 2, 2],
    }
    assert reward.watch(log_metric=logged.__setitem__, **given) == [0.0] * 4
    # 1 and 1; 0.5 for half of the words and 0.5 for no end
    assert logged["equal_groups"] == 1.0
    assert logged["ended"] == 0.75
    given["completion_ids"] = [[1, END], [1, END], [1, END], [1, END]]
    reward.watch(log_metric=logged.__setitem__, **given)
    assert logged["equal_groups"] == 0.5
    assert logged["spread"] == pytest.approx(np.mean([0.0, np.std([0.5, 1.0])]))


def test_right_answers_beside_spoilt_ones_and_what_never_ends_has_no_end(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    found = Fitting(10**6)
    verified(tokenizer, config | {"dpo": config["dpo"] | {"problems": 40}}, found)
    assert len(found.rows) == 40
    unended = [row for row in found.rows if row["rejected_ids"][-1] != tokenizer.eos_token_id]
    assert 0 < len(unended) < 20
    assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in found.rows)
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in found.rows)
    short = Fitting(300)
    verified(tokenizer, config, short)
    assert short.report("pairs")["too long"] > 0


def test_the_best_of_some_answers_is_preferred_as_it_was_written(
    config: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(config["model"])
    texts = ["a river " * 10, "a river " * 10, "a river"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    written = [  # twenty words that end, the same that do not, and two
        Written([*ids[0], tokenizer.eos_token_id], True, []),
        Written(ids[1], False, []),
        Written([*ids[2], tokenizer.eos_token_id], True, []),
    ]
    monkeypatch.setattr(pairs_module, "write", lambda *_, **__: written)
    chat = [{"role": "user", "content": "Write 20 words."}, {"role": "assistant", "content": "a"}]
    write_json_lines(tmp_path / "rows.jsonl", [{"messages": chat, "words": 20}])
    own = config["dpo"] | {"samples": 3, "prompts": 5}
    changed = config | {"chats": [str(tmp_path / "rows.jsonl")], "dpo": own}
    rejected = []
    for seed in range(12):
        found = Fitting(10**6)
        said = by_length(model, tokenizer, changed | {"seed": seed}, found)
        shorter = len(found.rows[0]["rejected_ids"]) < len(found.rows[0]["chosen_ids"])
        counted = {LOOP: said[LOOP], "rejected answers that are shorter": shorter}
        assert said == {"prompts": 1, "prompts without a worse answer": 0} | counted
        assert said[LOOP] == (found.rows[0]["rejected_ids"] == written[1].ids)
        (pair,) = found.rows
        assert pair["chosen_ids"] == written[0].ids
        rejected.append(pair["rejected_ids"])
    # the one that did not end has the text of the best
    assert {tuple(ids) for ids in rejected} == {tuple(written[1].ids), tuple(written[2].ids)}


def test_answers_that_loop_are_rejected_first_and_never_preferred() -> None:
    loop, short = "a river is long and slow here, says one " * 5, "a stone lies under the water"
    good = " ".join(a + b for a in "bcdfgh" for b in ("an", "en", "in", "on", "un", "ar"))
    one = Sampled([{"role": "user", "content": "Write 45 words."}], 45, [loop, short, good, loop], [1, 1, 1, 0])
    loops = {tuple(length_pairs([one], seed=seed, loops=True)[0][0]["answers"]) for seed in range(20)}
    assert loops == {(2, 0), (2, 3)}
    # as in LongWriter, S_l alone decides
    others = {tuple(length_pairs([one], seed=seed)[0][0]["answers"]) for seed in range(20)}
    assert others == {(0, 1), (0, 2), (0, 3)}
    none = Sampled(one.prompt, 45, [short, good], [1, 1])
    assert length_pairs([none], loops=True)[0][0]["answers"] == [1, 0], "where none loops, a random one"


@pytest.mark.parametrize("period", [1, 5, 20, 90])
@pytest.mark.parametrize("before", [0, 3, 200])
def test_a_loop_begins_where_runs_go_on_repeating(before: int, period: int) -> None:
    """A text without repetition, then the same tokens over and over: their first round is not a loop yet."""
    ids = [*range(1000, 1000 + before), *(list(range(period)) * 400)[:400]]
    assert loop_start(ids) == before + period
    assert cut_loop(ids, 64) == ids[: before + period + 64]
    # one that is left again within a few tokens is none
    once = [*range(200), *range(150, 170), *range(300, 600)]
    assert loop_start(once) is None
    assert cut_loop(once, 64) == once
    assert loop_start([]) is None


def test_a_rejected_loop_can_be_cut(config: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(config["model"])
    text = " ".join(a + b for a in "bcdfg" for b in ("an", "en", "in", "on"))
    good = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    loop = [*range(50, 90), *[7, 8, 9] * 100]
    monkeypatch.setattr(pairs_module, "write", lambda *_, **__: [Written(good, True, []), Written(loop, False, [])])
    chat = [{"role": "user", "content": "Write 20 words."}, {"role": "assistant", "content": "a"}]
    write_json_lines(tmp_path / "rows.jsonl", [{"messages": chat, "words": 20}])
    for kept, rejected in ((None, loop), (16, loop[: 40 + 3 + 16])):
        own = config["dpo"] | {"samples": 2, "prompts": 5, "rejected": "loops", "loop_tokens": kept}
        found = Fitting(10**6)
        by_length(model, tokenizer, config | {"chats": [str(tmp_path / "rows.jsonl")], "dpo": own}, found)
        (pair,) = found.rows
        assert (pair["chosen_ids"], pair["rejected_ids"]) == (good, rejected)


def test_an_answer_that_loops_at_its_end_is_not_preferred(
    config: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of its words loop, it is as long as asked and ends; another is shorter, and never loops."""
    model, tokenizer = load(config["model"])
    words = [a + b + c for a in "bcdfghklmnp" for b in "aeiou" for c in "lmnrst"]
    texts = [" ".join([*words[:300], *["on", "and"] * 50]), " ".join(words[:250])]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    sampled = [Written([*one, tokenizer.eos_token_id], True, []) for one in ids]
    assert loop_start(sampled[0].ids) is not None
    assert loop_start(sampled[1].ids) is None
    monkeypatch.setattr(pairs_module, "write", lambda *_, **__: sampled)
    chat = [{"role": "user", "content": "Write 400 words."}, {"role": "assistant", "content": "a"}]
    write_json_lines(tmp_path / "rows.jsonl", [{"messages": chat, "words": 400}])
    for rejected, right in (("random", (0, 1)), ("loops", (1, 0))):
        own = config["dpo"] | {"samples": 2, "prompts": 5, "rejected": rejected, "longest": 10**4}
        found = Fitting(10**6)
        said = by_length(model, tokenizer, config | {"chats": [str(tmp_path / "rows.jsonl")], "dpo": own}, found)
        (pair,) = found.rows
        assert (pair["chosen_ids"], pair["rejected_ids"]) == tuple(sampled[i].ids for i in right)
        assert said[LOOP] == (rejected == "loops")


def test_the_interval_is_that_of_scipy() -> None:
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    rng = np.random.default_rng(3)
    theirs = rng.normal(50, 22, 200)
    ours = theirs + rng.normal(4, 9, 200)
    found = paired(ours.tolist(), theirs.tolist())
    right = bootstrap((ours - theirs,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert found["difference"] == pytest.approx(float(np.mean(ours - theirs)))
    assert found["low"] == pytest.approx(right.low, abs=0.1)
    assert found["high"] == pytest.approx(right.high, abs=0.1)


def test_the_interval_of_normal_differences() -> None:
    differences = np.random.default_rng(0).normal(1.0, 5.0, 400)
    found = paired(differences.tolist(), [0.0] * 400)
    half = 1.96 * float(differences.std()) / 400**0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.05)
    with pytest.raises(ValueError, match="3 and 2 values: expected those of the same prompts"):
        paired([1, 2, 3], [1, 2])


def test_scores_of_a_model(config: dict[str, Any]) -> None:
    model, tokenizer = load(config["model"])
    found = Scores(lambda: (model, tokenizer), config).all()
    (cell,) = found["tasks"]
    assert (cell["task"], cell["tokens"], len(cell["exact"])) == ("numbered", 60, 2)
    assert {cell["asked"] for cell in found["writing"]} <= {10, 20, 30, 40}
    assert found["not measured"] == found["no room"] == []
    # near ln(vocabulary): it was not trained
    assert found["loss on held-back answers"] == pytest.approx(np.log(500), abs=0.2)
    banned = Scores(lambda: (model, tokenizer), config, banned=True).all()
    assert not any(value for what in ("tasks", "writing") for cell in banned[what] for value in cell["ended"])


def test_some_answers_are_kept_to_be_read(config: dict[str, Any], tmp_path: Path) -> None:
    """Whole, beside the scores; an interrupted call has those of all sizes."""
    given, file = load(config["model"]), tmp_path / "texts/one.jsonl"
    sizes = Progress(config | {"out": str(tmp_path)}, [], resume=False).sizes("one")
    found = Scores(lambda: given, config, sizes=sizes, texts=file).all()
    kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == sum(min(len(cell["ended"]), 4) for what in ("tasks", "writing") for cell in found[what])
    cells = {(cell["asked"], cell["form"]): cell for cell in found["writing"]}
    for one in (one for one in kept if "asked" in one):
        cell = cells[one["asked"], one["form"]]
        at = cell["words"].index(n_words(one["text"]))
        assert one["words"] == cell["words"][at]
        assert f"in {one['asked']} words" in one["prompt"]
    before = file.read_bytes()
    file.unlink()
    again = Progress(config | {"out": str(tmp_path)}, [], resume=True).sizes("one")
    Scores(lambda: pytest.fail("it was loaded"), config, sizes=again, texts=file).all()
    assert file.read_bytes() == before


def test_answers_that_ended_and_others_are_kept() -> None:
    texts = [f"text {i}" for i in range(9)]

    def kept(ended: list[float]) -> list[str]:
        return [one["text"] for one in examples({"form": "plain"}, texts, texts, ended, share=range(9))]

    assert kept([1, 1, 1, 1, 1, 0, 0, 0, 0]) == ["text 0", "text 1", "text 5", "text 6"]
    assert kept([0, 0, 0, 1, 0, 0, 0, 0, 0]) == ["text 0", "text 1", "text 2", "text 3"]
    assert kept([1] * 9) == texts[:4]
    (one, *_) = examples({"form": "plain"}, ["asked"], ["long " * 9000], [0.0], share=[0.5])
    assert one == {"form": "plain", "ended": False, "share": 0.5, "prompt": "asked", "text": ("long " * 9000)[:20_000]}


def test_the_loss_is_that_of_the_stock_model(config: dict[str, Any]) -> None:
    model, tokenizer = load(config["model"])
    chat = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": "The river is long."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    prompt = len(tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"])
    labels = ids.clone()
    labels[:, :prompt] = -100
    labels[:, -1] = -100  # the line's end, which the template writes after the end token
    with torch.no_grad():
        right = model(ids, labels=labels).loss
    found = Scores(lambda: (model, tokenizer), config).loss([{"messages": chat}])
    assert found == pytest.approx(float(right), rel=1e-5)


def test_rows_say_what_holds_its_bar_and_the_card_has_them() -> None:
    lines = {"untrained": scores([0, 0, 0], [0, 0, 0], [0, 0, 0], 3.0)}
    lines["sft"] = scores([1, 1, 0], [1, 1, 1], [0.7, 0.8, 0.9], 2.0)
    found = {one["what"]: one for one in [*rows(lines, "sft"), *gained(lines, "sft", "untrained")]}
    exact = found["sft: answers of 500 tokens that are exact"]
    assert exact["holds"]
    assert exact["value"] == pytest.approx(2 / 3)
    assert exact["beside"] == {"untrained": 0.0}
    length = found["sft: S_l, 0 for unended, writing (plain)"]
    assert length["value"] == pytest.approx(0.8)
    assert length["beside"]["always 1,000 words"] == pytest.approx(1 - 1 / 3)
    assert length["beside"]["stops at random"] == pytest.approx(0.47, abs=0.01)
    median = found["sft: median of written over asked, or its inverse, plain, 500 words asked"]
    assert (median["value"], median["holds"]) == (1.1, True)
    assert found["sft over untrained, writing: ended_length, lower end"]["holds"]
    assert found["sft over untrained, tasks: exact, lower end"]["value"] <= 2 / 3
    assert found["sft over untrained, perplexity of held-back answers"]["value"] == pytest.approx(np.exp(-1))
    report = {"base": "tiny", "stages": {"sft": {"steps": 3, "seconds": 4.0}}, "lines": lines, "hardware": "none"}
    report |= {"rows": list(found.values()), "versions": {"hf_longctx": "1", "trl": "1.16"}}
    tables = card.tables(report, "sft")
    (task,), (writing,) = tables["tasks"][1], tables["writing"][1]
    assert (task["what"], round(task["value"])) == ("table, 500 tokens", 67)
    assert task["beside"]["exact, untrained"] == 0
    assert (writing["what"], round(writing["value"])) == ("plain, 500 words asked", 80)
    assert writing["beside"]["median written over asked"] == 1.1
    assert writing["beside"]["median words, ended"] == 550
    assert writing["beside"]["of others, loops, %"] is None, "all ended"
    lines["sft"] = scores([1, 1, 0], [0, 1, 0], [0.7, 0.8, 0.9], 2.0)
    (other,) = card.writing(lines, "sft")
    assert other["beside"]["median words, ended"] == 550
    assert other["beside"]["of others, loops, %"] == 50
    assert all(one["bar"] for one in tables["bars"][1])
    assert "Not measured, for lack of time: tasks 2000." in card.about(report, "sft")


def test_rollouts_take_over_the_weights_and_give_what_trl_asks_for(config: dict[str, Any]) -> None:
    model, tokenizer = load(config["model"])
    rollouts = Rollouts(model, tokenizer, {tokenizer.eos_token_id}, torch.float32, 10**6)
    args = SimpleNamespace(temperature=1.0, top_p=1.0, seed=0, max_completion_length=12)
    unwrap = SimpleNamespace(unwrap_model=lambda one: one)
    trainer = SimpleNamespace(accelerator=unwrap, model=model, args=args, state=SimpleNamespace(global_step=0))
    prompts = [[{"role": "user", "content": "Write."}]] * 2
    found = rollouts(prompts, trainer)
    assert set(found) == {"prompt_ids", "completion_ids", "logprobs"}
    assert [len(ids) for ids in found["completion_ids"]] == [len(one) for one in found["logprobs"]]
    assert found["completion_ids"] == rollouts(prompts, trainer)["completion_ids"]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    assert found["completion_ids"] != rollouts(prompts, trainer)["completion_ids"]
    model.get_output_embeddings().weight.data.div_(50)


def test_a_reward_rises_from_the_first_quarter_of_the_steps_to_the_last() -> None:
    (one,) = risen("grpo", [0.0, 0.2, None, 5.0, 5.0, 5.0, 5.0, 0.4, 0.8])
    assert one["value"] == pytest.approx(0.5)
    assert one["holds"] is True
    assert one["beside"] == {"first": pytest.approx(0.1), "last": pytest.approx(0.6)}
    assert not list(risen("grpo", [1.0, 2.0, 3.0]))
    assert not list(risen("sft", []))


def test_plain_writing_after_reinforcement_has_a_bar_of_its_own() -> None:
    lines = {name: scores([1.0], [1.0], [0.7], 3.0) for name in ("untrained", "sft", "grpo")}
    bars = {name: {one["what"]: one["bar"] for one in rows(lines, name)} for name in ("sft", "grpo")}
    assert bars["sft"]["sft: S_l, 0 for unended, writing (plain)"] == ">= 0.6"
    assert bars["grpo"]["grpo: S_l, 0 for unended, writing (plain)"] == ">= 0.75"
