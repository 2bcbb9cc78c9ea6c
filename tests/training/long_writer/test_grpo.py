"""Reinforcement in recipes/long_writer by TRL: its prompts, stock ways to generate, and groups of equal rewards."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")


from hf_longctx.hub import load
from hf_longctx.hub.resolve import load_tokenizer
from recipes.long_writer import rollouts, train_grpo
from recipes.long_writer.decode import Sampling, Written
from recipes.long_writer.pairs import end_ids

from .made import elsewhere


@pytest.mark.parametrize("how", ["plain", "static", "continuous"])
def test_stock_ways_to_generate(how: str, config: dict[str, Any], tmp_path: Path) -> None:
    own = config["grpo"]["training"] | {"max_completion_length": 8}
    changed = elsewhere(config, tmp_path, grpo={"generation": how, "steps": 1, "training": own})
    report = train_grpo.train(changed)
    assert report["steps"] == 1
    assert len(report["curve"]["reward"]) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_answers_that_are_cut_can_be_learnt_from(
    masked: bool, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are masked; and answers are drawn as the training says."""
    drawn, stock = list[Any](), rollouts.write

    def write(*args: Any, **kwargs: Any) -> Any:
        drawn.append(args[4])
        return stock(*args, **kwargs)

    monkeypatch.setattr(rollouts, "write", write)
    own = config["grpo"]["training"] | {"max_completion_length": 12, "mask_truncated_completions": masked}
    own |= {"temperature": 0.8, "top_p": 0.95}
    changes = {"steps": 1, "problems": 0, "rewards": {"length": 1.0}, "training": own}
    report = train_grpo.train(elsewhere(config, tmp_path, grpo=changes, score={"tokens_per_word": 1.0}))
    assert report["curve"]["ended"] == [0.0]
    assert report["curve"]["spread"][0] > 0
    assert (report["logs"][0]["grad_norm"] > 0) == (not masked)
    assert {(one.temperature, one.top_p) for one in drawn} == {(0.8, 0.95)}


def test_groups_of_equal_rewards_are_said_when_over_half(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_longctx"):
        assert train_grpo.equal_groups({"equal groups": [0.5, 0.5]}, 4) == {"groups": 8, "of equal rewards": 4}
        assert not caplog.text
        assert train_grpo.equal_groups({"equal groups": [0.75, 0.5]}, 4) == {"groups": 8, "of equal rewards": 5}
    assert "5 of 8 groups had answers of equal rewards, from which nothing is learnt" in caplog.text


def test_prompts_that_leave_no_room_are_left_out(config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(config["model"])
    found, more_asked = train_grpo.prompts(tokenizer, config)
    assert not found.too_long
    assert more_asked == 0
    some, more_asked = train_grpo.prompts(tokenizer, config | {"grpo": config["grpo"] | {"prompts": 3}})
    assert [sum(bool(row["words"]) for row in one.rows) for one in (some, found)] == [3, 12]
    assert more_asked == 0
    short, _ = train_grpo.prompts(tokenizer, config | {"context": 200})
    assert len(short.rows) + len(short.too_long) == len(found.rows)
    assert short.report("prompts")["too long"] > 0
    own = config["grpo"] | {"training": config["grpo"]["training"] | {"max_completion_length": 25}}
    few, more_asked = train_grpo.prompts(tokenizer, config | {"grpo": own})
    # of 10 to 40 words, 2 tokens each
    asked = [row["words"] for row in few.rows if row["words"]]
    assert set(asked) <= {10, 20}
    assert len(asked) + more_asked == 12


def trainer_of(model: Any, **args: Any) -> Any:
    """What rollouts ask of a trainer, at its first step."""
    return SimpleNamespace(
        args=SimpleNamespace(**{"top_p": 1.0, "seed": 3} | args),
        model=model,
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(unwrap_model=lambda x: x),
    )


def test_continuous_batching_leaves_what_is_trained_as_it_is(config: dict[str, Any]) -> None:
    """Answers are those of the weights at that step, end with their end token or at the limit, and repeat by a seed."""
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")
    ends = end_ids(model, tokenizer)
    rollouts_of = rollouts.ContinuousRollouts(model, tokenizer, ends, torch.float32, 1000)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    trainer = trainer_of(model, temperature=0.01, max_completion_length=6)
    texts = ["Once upon a time", "The second one is longer than the first one", "Once upon a time"]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    found = rollouts_of(prompts, trainer)
    assert found["logprobs"] is None
    assert next(model.parameters()).dtype == torch.float32
    for ids, answer in zip(found["prompt_ids"], found["completion_ids"], strict=True):
        stock = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=6, eos_token_id=sorted(ends))
        assert answer == stock[0, len(ids) :].tolist()
    assert rollouts_of(prompts, trainer)["completion_ids"] == found["completion_ids"]


def test_answers_that_loop_can_be_cut(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that did not end, with their log-probabilities."""
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")
    loop, good = [*range(50, 90), *[7, 8, 9] * 100], [*range(100, 160), 2]
    written = [Written(x, x[-1] == 2, [-1.0] * len(x)) for x in (loop, good, [*loop, 2])]
    monkeypatch.setattr(rollouts, "write", lambda *_, **__: written)
    trainer = trainer_of(model, temperature=1.0, max_completion_length=400)
    prompts = [[{"role": "user", "content": "Write"}]] * 3
    for kept, first in ((None, loop), (16, loop[: 40 + 3 + 16])):
        found = rollouts.Rollouts(model, tokenizer, {2}, torch.float32, 1000, kept)(prompts, trainer)
        assert found["completion_ids"] == [first, good, [*loop, 2]]
        assert [len(one) for one in found["logprobs"]] == [len(one) for one in found["completion_ids"]]


def test_continuous_batching_that_fails_says_so(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")
    rollouts_of = rollouts.ContinuousRollouts(model, tokenizer, {2}, torch.float32, 1000)
    one = SimpleNamespace(error="out of pages", generated_tokens=[])
    monkeypatch.setattr(rollouts_of.writer, "generate_batch", lambda *_, **__: {"a": one})
    with pytest.raises(RuntimeError, match=r"answered 0 of 2 prompts: out of pages\. Sample answers otherwise"):
        rollouts_of._write([[5], [6]], [4, 4], Sampling(1.0))
