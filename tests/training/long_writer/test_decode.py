"""Answers from a static cache are those of stock `generate`, and their log-probabilities those of a plain forward."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from recipes.long_writer import batching, decode, grouped
from recipes.long_writer.batching import BLOCK, columns, together
from recipes.long_writer.decode import LateError, Sampling, choose, write
from recipes.long_writer.grouped import attending_grouped
from recipes.long_writer.step import Step, bias

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [3, 4] * 300]
LIMITS = [60, 40, 30]
END = 2
WARM = LogitsProcessorList([TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.95)])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": END, "eos_token_id": END}
    made = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    for weight in made.parameters():
        if weight.ndim == 2:
            weight.data.mul_(6)  # attention that is far from uniform
    return made


def greedy(model: Any, ends: set[int]) -> list[list[int]]:
    more = {"do_sample": False, "eos_token_id": list(ends), "pad_token_id": END}
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=limit, **more)[0, len(prompt) :].tolist()
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("at_once", [10**6, 300])
def test_answers_are_those_of_generate(model: Any, at_once: int, grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cache grows many times, and loses the rows that have ended."""
    copied: list[tuple[int, int]] = []
    if grows:
        monkeypatch.setattr(batching, "BLOCK", 8)
        for name, value in (("FIXED", 8), ("AHEAD", 1), ("WATCH", 4), ("_next", lambda read: read + 7)):
            monkeypatch.setattr(decode, name, value)
    stock = Step.going_on

    def going_on(self: Step, row_N: torch.Tensor, columns: int) -> Step:
        copied.append((len(row_N), columns))
        return stock(self, row_N, columns)

    monkeypatch.setattr(Step, "going_on", going_on)
    first = greedy(model, {END})
    # a token that ends one of them early
    ends = {END, first[0][7]}
    right = greedy(model, ends)
    assert len(right[0]) <= 8 < LIMITS[0]
    found = write(model, PROMPTS, LIMITS, ends, tokens_at_once=at_once)
    assert [one.ids for one in found] == right
    assert [one.ended for one in found] == [ids[-1] in ends for ids in right]
    for prompt, one in zip(PROMPTS, found, strict=True):
        logits = model(torch.tensor([prompt + one.ids])).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.log_probs), chances, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"
    assert (len(copied) >= 4) == grows
    if grows and at_once == 10**6:
        assert {rows for rows, _ in copied} == {1, 2}


def test_a_graph_is_not_replayed_for_other_tensors(model: Any) -> None:
    """A graph reads and writes where it was recorded."""
    seen = torch.zeros(2, 16, dtype=torch.bool)
    seen[:, :4] = True
    with torch.no_grad():
        step = Step(model, torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]]), seen)
        step._replay = lambda: pytest.fail("it was replayed")
        before = step.logits_BV.clone()
        other = step.going_on(torch.tensor([1]), 24)
        assert torch.equal(other.logits_BV, before[1:])
        other(torch.tensor([3]))
        right = model(torch.tensor([[9, 8, 7, 6, 3]])).logits[:, -1]
    torch.testing.assert_close(other.logits_BV, right, rtol=1e-4, atol=1e-4)
    assert torch.equal(step.logits_BV, before)
    shared = {one.data_ptr() for one in (step.bias_BS, step.logits_BV, step.token_B1, step.position_B1, step.column_1)}
    own = {other.bias_BS, other.logits_BV, other.token_B1, other.position_B1, other.column_1}
    assert not shared & {one.data_ptr() for one in own}


def test_what_is_not_written_in_time_is_an_error(model: Any) -> None:
    with pytest.raises(TimeoutError, match="3 answers were not written in time"):
        write(model, PROMPTS, LIMITS, {END}, tokens_at_once=10**6, until=time.monotonic() - 1)


def test_batches_that_were_written_in_time_are_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch in which the time is over: the answers are those of a call that has all of it."""
    whole = write(model, PROMPTS, LIMITS, {END}, tokens_at_once=300)
    batches = together([len(prompt) for prompt in PROMPTS], LIMITS, 300)
    assert len(batches) == 3
    stock, begun = decode._batch, list[Any]()

    def timed(*args: Any) -> Any:
        begun.append(args)
        return stock(*args[:-1], time.monotonic() + (-1 if len(begun) > done else 1000))

    monkeypatch.setattr(decode, "_batch", timed)
    for done in range(3):
        begun.clear()
        with pytest.raises(LateError, match=f"{3 - done} of 3 answers were not written in time") as late:
            write(model, PROMPTS, LIMITS, {END}, tokens_at_once=300, until=0.0)
        kept = [i for batch in batches[:done] for i in batch]
        assert late.value.written == [one if i in kept else None for i, one in enumerate(whole)]


def test_no_name_of_the_cache_is_given_that_warns(model: Any, recwarn: pytest.WarningsRecorder) -> None:
    write(model, PROMPTS, LIMITS, {END}, tokens_at_once=10**6)
    assert not [one for one in recwarn if "past_key_values" in str(one.message)]


def test_batches_cost_least() -> None:
    """As the best of all ways to cut their order, tried one by one."""
    rng = random.Random(0)
    for _ in range(20):
        n = rng.randint(1, 9)
        widths, limits = ([rng.randint(1, 9000) for _ in range(n)] for _ in range(2))
        most = rng.choice((10**9, 40_000))
        order = sorted(range(n), key=lambda i: -widths[i] - limits[i])
        each = []
        for cuts in itertools.product((False, True), repeat=n - 1):
            edges = [0, *(at for at, cut in enumerate(cuts, 1) if cut), n]
            parts = [order[a:b] for a, b in itertools.pairwise(edges)]
            longest = [(max(widths[i] for i in part), max(limits[i] for i in part)) for part in parts]
            if all(len(p) == 1 or len(p) * columns([w], [m]) <= most for p, (w, m) in zip(parts, longest, strict=True)):
                reads = zip(parts, longest, strict=True)
                each.append(sum(m * (batching.FIXED + len(part) * (w + m / 2)) for part, (w, m) in reads))
        found = together(widths, limits, most)
        assert sorted(i for part in found for i in part) == list(range(n))
        assert batching.cost(widths, limits, most) == pytest.approx(min(each))


def test_short_answers_stand_together_and_long_ones_with_their_like() -> None:
    assert len(together([40] * 10 + [200] * 10, [50] * 10 + [90] * 10, 10**9)) == 1
    long = together([6500] * 40 + [300] * 40, [1700] * 40 + [4000] * 40, 10**9)
    assert [sorted(part) for part in long] == [list(range(40)), list(range(40, 80))]


def test_batches_are_few_and_hold_no_more_than_they_may() -> None:
    widths, limits = [30, 700, 90, 400] * 5, [500, 100, 500, 400] * 5
    found = list(together(widths, limits, 10 * 1280))
    assert sorted(number for batch in found for number in batch) == list(range(20))
    sizes = [len(one) * columns([widths[i] for i in one], [limits[i] for i in one]) for one in found]
    assert max(sizes) <= 10 * 1280
    # prompts of any length stand together
    assert len(found) == 2
    assert columns([700], [500]) == 1280 == 5 * BLOCK
    assert list(together([9, 9], [9, 9], 1)) == [[0], [1]]
    assert list(together([], [], 1)) == []


def test_seeds_decide_what_is_sampled(model: Any) -> None:
    def sampled(seed: int) -> list[list[int]]:
        found = write(model, PROMPTS, LIMITS, {END}, Sampling(0.8, 0.95, seed), tokens_at_once=10**6)
        return [one.ids for one in found]

    assert sampled(1) == sampled(1) != sampled(2)


def test_a_banned_end_is_never_written(model: Any) -> None:
    ends = {greedy(model, {END})[0][7]}
    assert write(model, PROMPTS[:1], [30], ends, tokens_at_once=10**6)[0].ended
    (found,) = write(model, PROMPTS[:1], [30], ends, Sampling(banned=tuple(ends)), tokens_at_once=10**6)
    assert not found.ended
    assert len(found.ids) == 30
    assert not ends & set(found.ids)


def test_the_nucleus_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 30) * 3
    kept = TopPLogitsWarper(0.7)(None, logits).isfinite().flatten()
    generator = torch.Generator().manual_seed(0)
    tokens, chances = choose(logits.expand(4000, -1), Sampling(1.0, 0.7), generator)
    assert set(tokens.tolist()) == set(kept.nonzero().flatten().tolist())
    # log-probabilities are those of all tokens, as TRL computes them again
    torch.testing.assert_close(chances, logits.log_softmax(-1)[0, tokens])


def test_what_is_drawn_from_is_what_transformers_draws_from() -> None:
    """The temperature first, then the nucleus, in every row of a batch."""
    torch.manual_seed(0)
    logits = torch.randn(60, 500) * 4
    for given in (logits, logits.bfloat16().float()):
        right = WARM(None, given).softmax(-1)
        found = decode._nucleus((given / 0.8).softmax(-1), 0.95)
        found /= found.sum(-1, keepdim=True)
        # of those that are as likely as the last one, which bfloat16 makes often, any may be it
        tied = given is not logits
        pair = (found.sort().values, right.sort().values) if tied else (found, right)
        torch.testing.assert_close(*pair, rtol=1e-4, atol=0)


def test_what_is_sampled_is_of_the_nucleus_of_a_plain_forward(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind rows that have left, and in caches that have grown."""
    monkeypatch.setattr(batching, "BLOCK", 8)
    for name, value in (("FIXED", 8), ("AHEAD", 1), ("WATCH", 4), ("_next", lambda read: read + 7)):
        monkeypatch.setattr(decode, name, value)
    prompts, limits = [*PROMPTS, *PROMPTS], [60, 40, 30, 20, 9, 60]
    found = write(model, prompts, limits, {END}, Sampling(0.8, 0.95, 5), tokens_at_once=10**6)
    assert sum(len(one.ids) for one in found) > 100
    outside = 0
    for prompt, one in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.ids])).logits[0, len(prompt) - 1 : -1]
        at = torch.tensor(one.ids)[:, None]
        chances = (logits / 0.8).log_softmax(-1).gather(1, at)[:, 0]
        torch.testing.assert_close(torch.tensor(one.log_probs), chances, rtol=1e-4, atol=1e-4)
        outside += int((~WARM(None, logits).gather(1, at).isfinite()).sum())
    assert outside == 0


@pytest.mark.parametrize("kernel", [False, True])
def test_the_step_reads_shared_keys_once(model: Any, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "has_kernel", lambda branch: kernel)
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 40, 16), torch.randn(3, 2, 40, 16)
    mask = torch.rand(3, 1, 1, 40) > 0.3
    layer = model.model.layers[0].self_attn
    found, _ = grouped.attention(layer, query, key, value, mask, scaling=0.25)
    biased, _ = grouped.attention(layer, query, key, value, bias(mask, key.dtype), scaling=0.25)
    torch.testing.assert_close(found, biased)
    scores = torch.einsum("bhld,bhsd->bhls", query, key.repeat_interleave(2, 1)) * 0.25
    right = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(found, right.transpose(1, 2))


def test_answers_by_the_library_s_attention_are_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns without a token are known once a step, and for prompts of one token by their mask."""
    monkeypatch.setattr(grouped, "has_kernel", lambda branch: True)
    monkeypatch.setattr(batching, "BLOCK", 8)
    monkeypatch.setattr(decode, "WATCH", 4)
    monkeypatch.setattr(decode, "_next", lambda read: read + 7)
    asked, stock = list[torch.Tensor](), grouped.positions_of

    def positions_of(mask: torch.Tensor) -> Any:
        asked.append(mask)
        return stock(mask)

    monkeypatch.setattr(grouped, "positions_of", positions_of)
    one = [[5], *PROMPTS[:2]]
    alone = [write(model, [prompt], [9], {END}, tokens_at_once=10**6)[0].ids for prompt in one]
    assert [row.ids for row in write(model, one, [9] * 3, {END}, tokens_at_once=10**6)] == alone
    found = write(model, PROMPTS, LIMITS, {END}, tokens_at_once=10**6)
    assert [one.ids for one in found] == greedy(model, {END})
    assert len(asked) == model.config.num_hidden_layers, "by the prompt of one token alone"


def test_other_attention_stays_what_it_is(model: Any) -> None:
    model.set_attn_implementation("eager")
    try:
        with attending_grouped(model):
            assert model.config._attn_implementation == "eager"
        found = write(model, PROMPTS[:2], LIMITS[:2], {END}, tokens_at_once=10**6)
    finally:
        model.set_attn_implementation("sdpa")
    model.set_attn_implementation("eager")
    try:
        right = greedy(model, {END})[:2]
    finally:
        model.set_attn_implementation("sdpa")
    assert [one.ids for one in found] == right
    with flex_attention(model), pytest.raises(ValueError, match="attends by flex_attention: expected sdpa or eager"):
        write(model, PROMPTS, LIMITS, {END}, tokens_at_once=10**6)


@contextmanager
def flex_attention(model: Any) -> Iterator[None]:
    model.set_attn_implementation("flex_attention")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
