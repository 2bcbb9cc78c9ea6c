from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from hf_longctx.evaluation import passkey
from hf_longctx.evaluation.answer import greedy
from hf_longctx.evaluation.passkey import PasskeyCell, passkey_cell, passkey_grid, passkey_prompts, wilson_interval
from tests.evaluation.conftest import Oracle


def recall(text: str) -> str:
    found = re.search(r"The pass key is (\d+)\. Remember", text)
    return f" {found[1]}. Th" if found else " unknown"


@pytest.mark.parametrize(
    ("correct", "trials", "low", "high"),
    [
        # By hand, z = 1.96: (0.8 + 0.19207 ± 1.96 sqrt(0.016 + 0.0096)) / 1.38415 and so on.
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (1, 1, 0.20655, 1.0),
        (50, 100, 0.40383, 0.59617),
    ],
)
def test_wilson_interval_by_hand(correct: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(correct, trials) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("correct", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses(correct: int, trials: int) -> None:
    with pytest.raises(ValueError, match="at least 1 trial"):
        wilson_interval(correct, trials)


@pytest.mark.parametrize("haystack", ["filler", "Call me Ishmael. Some years ago."])
@pytest.mark.parametrize("depth", [0, 0.3, 1.0])
@pytest.mark.parametrize("length", [400, 1001])
def test_every_prompt_has_exactly_its_length_and_its_parts(
    tokenizer: Any, length: int, depth: float, haystack: str
) -> None:
    ids, keys = passkey_prompts(tokenizer, length, depth, trials=4, haystack=haystack)
    assert ids.shape == (4, length)
    assert len(set(keys)) == 4
    for row, key in zip(ids, keys, strict=True):
        text = tokenizer.decode(row)
        assert re.fullmatch(r"\d{5}", key)
        assert text.startswith(passkey.TASK + "\n")
        assert text.endswith("\n" + passkey.QUESTION)
        info = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
        hay = length - len(passkey.TASK) - 1 - len(info) - len(passkey.QUESTION) - 1
        assert text.index(info) - len(passkey.TASK) - 1 == round(depth * hay)
    assert (haystack == "filler") == ("The grass is green. The sky is blue." in text)


def test_filler_begins_alike_and_a_real_text_anew_in_every_trial(tokenizer: Any) -> None:
    start = len(passkey.TASK) + 1
    filler, _ = passkey_prompts(tokenizer, 600, 1.0, trials=3)
    text, _ = passkey_prompts(tokenizer, 600, 1.0, trials=3, haystack="Call me Ishmael. Some years ago.")
    assert {tokenizer.decode(row[start : start + 10]) for row in filler} == {"The grass "}
    assert len({tokenizer.decode(row[start : start + 10]) for row in text}) > 1


def test_the_tokenizers_own_bos_leads_the_prompt(tokenizer: Any, bos_tokenizer: Any) -> None:
    plain, keys = passkey_prompts(tokenizer, 500, 0.5, trials=1)
    led, same_keys = passkey_prompts(bos_tokenizer, 500, 0.5, trials=1)
    assert led.shape == plain.shape
    assert led[0, 0] == bos_tokenizer.bos_token_id
    assert (led[0, 1:] < 256).all()
    assert keys == same_keys


def test_a_seed_gives_the_same_prompts_whatever_the_batch_size_and_the_grid(tokenizer: Any) -> None:
    def seen(batch_size: int, depths: list[float], seed: int = 3) -> list[torch.Tensor]:
        model = Oracle(tokenizer, recall)
        passkey_grid(
            model,
            tokenizer,
            lengths=[500],
            depths=depths,
            trials=5,
            seed=seed,
            batch_size=batch_size,
            haystack="A text.",
        )
        return list(torch.cat(model.seen))

    one, all_at_once = seen(1, [0.5]), seen(5, [0.0, 0.5])
    assert all(torch.equal(a, b) for a, b in zip(one, all_at_once[5:], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, seen(2, [0.5], seed=4), strict=True))


def test_only_the_first_digits_of_the_generated_text_count(tokenizer: Any) -> None:
    def score(answer: Any) -> int:
        model: Any = Oracle(tokenizer, answer)
        return passkey_cell(model, tokenizer, 400, 0.5, trials=4, batch_size=3).correct

    assert score(recall) == 4
    assert score(lambda text: recall(text).strip()) == 4
    # The key stands in every prompt, but a model that says nothing has found nothing.
    assert score(lambda text: " unknown") == 0
    assert score(lambda text: "7 " + recall(text)) == 0
    assert score(lambda text: recall(text).strip(" .Th") + "1") == 0


def test_truncation_loses_a_key_that_lies_before_the_cut(tokenizer: Any) -> None:
    model: Any = Oracle(tokenizer, recall)
    cells = passkey_grid(model, tokenizer, lengths=[1000], depths=[0.0, 1.0], trials=2, keep_last=300)
    assert [cell.correct for cell in cells] == [0, 2]
    whole, _ = passkey_prompts(tokenizer, 1000, 0.0, trials=2)
    assert torch.equal(model.seen[0], whole[:1, -300:])


def test_generation_is_greedy_whatever_the_checkpoint_says(tokenizer: Any) -> None:
    model: Any = Oracle(tokenizer, recall)
    passkey_cell(model, tokenizer, 400, 0.5, trials=1, prefill_chunk_size=64)
    config = model.configs[0]
    assert (config.do_sample, config.num_beams, config.max_new_tokens, config.prefill_chunk_size) == (False, 1, 8, 64)


def test_batches_and_chunked_prefill_do_not_change_a_real_models_answers(llama: Any, tokenizer: Any) -> None:
    ids, _ = passkey_prompts(tokenizer, 400, 0.5, trials=3)
    llama.generation_config.do_sample, llama.generation_config.temperature = True, 5.0
    answers = []
    for size, chunk in ((1, None), (3, None), (1, 100)):
        config = greedy(llama, tokenizer, passkey.MAX_NEW_TOKENS, chunk)
        mask = torch.ones_like(ids)
        rows = [llama.generate(b, attention_mask=m, generation_config=config)
                for b, m in zip(ids.split(size), mask.split(size), strict=True)]  # fmt: skip
        answers.append(torch.cat([torch.nn.functional.pad(row, (0, 408 - row.shape[1]), value=257) for row in rows]))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    cell = passkey_cell(llama, tokenizer, 400, 0.5, trials=3, batch_size=2)
    assert cell == PasskeyCell(400, 0.5, 3, 0)
    assert cell.accuracy == 0
    assert cell.interval == wilson_interval(0, 3)


def test_progress_counts_prompt_tokens(tokenizer: Any) -> None:
    steps: list[int] = []
    model: Any = Oracle(tokenizer, recall)
    passkey_cell(model, tokenizer, 400, 0.5, trials=5, batch_size=2, keep_last=350, progress=steps.append)
    assert steps == [800, 800, 400]


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_a_depth_outside_the_text_is_refused(tokenizer: Any, depth: float) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        passkey_prompts(tokenizer, 400, depth, trials=1)


def test_a_length_too_small_for_the_parts_names_the_least(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="length=100") as error:
        passkey_prompts(tokenizer, 100, 0.5, trials=1)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])  # type: ignore[index]  # the message has it
    assert passkey_prompts(tokenizer, least, 0.5, trials=1)[0].shape == (1, least)
    with pytest.raises(ValueError, match=f"at least {least}"):
        passkey_prompts(tokenizer, least - 1, 0.5, trials=1)


@pytest.mark.parametrize("haystack", ["", "  \n", []])
def test_an_empty_haystack_is_refused(tokenizer: Any, haystack: Any) -> None:
    with pytest.raises(ValueError, match="haystack is empty"):
        passkey_prompts(tokenizer, 400, 0.5, trials=1, haystack=haystack)


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"keep_last": 0}, {"trials": 0}])
def test_counts_below_one_are_refused(tokenizer: Any, option: dict[str, int]) -> None:
    model: Any = Oracle(tokenizer, recall)
    with pytest.raises(ValueError, match="at least 1"):
        passkey_cell(model, tokenizer, 400, 0.5, **option)  # type: ignore[arg-type]  # one of three ints
