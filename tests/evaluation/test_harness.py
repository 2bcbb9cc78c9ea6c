"""lm-eval on patched models, with a task of our own on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_longctx import LMInfinite, PositionFree, RopeScaling
from hf_longctx.evaluation.harness import ENDLESS, harness_model, reads, run

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 4, until: [], do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""


def test_the_length_follows_the_method(llama: Any) -> None:
    assert reads(llama) == 64
    with RopeScaling(type="yarn", factor=4.0).on(llama):
        assert reads(llama) == 256
    with LMInfinite(n_local=16).on(llama):
        assert reads(llama) == ENDLESS
    with PositionFree().on(llama):
        assert reads(llama) == 64
    vars(llama.config)["max_position_embeddings"] = None  # a config without it
    with pytest.raises(ValueError, match="Pass max_length="):
        reads(llama)


def test_wrong_settings_are_refused(llama: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"max_length=65: the model reads 1 to 64 tokens"):
        harness_model(llama, tokenizer, max_length=65)
    with pytest.raises(ValueError, match="expected one of auto, left, middle, error"):
        harness_model(llama, tokenizer, truncate="right")


def test_without_lm_eval_the_extra_is_named(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install .\.\[lm-eval\]. in a checkout"):
        harness_model(llama, tokenizer)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks on one file, one of them called as LongBench's are."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": "0123456789" * 6 + "x" * n, "answer": "?"}) + "\n" for n in range(3)))
    for name in ("mine", "longbench_mine"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, path=data))
    return tmp_path


def seen(model: Any) -> list[torch.Tensor]:
    """The prompts that `generate` is given from now on."""
    prompts: list[torch.Tensor] = []
    generate = model.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        prompts.append(kwargs["input_ids"].clone())
        return generate(*args, **kwargs)

    model.generate = watched
    return prompts


def test_stock_hflm_takes_a_patched_model_unchanged(llama: Any, tokenizer: Any, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    with LMInfinite(n_local=16, n_global=4).on(llama):
        harness = HFLM(pretrained=llama, tokenizer=tokenizer, max_length=reads(llama), batch_size=3)
        found = run(harness, ["mine"], include=str(tasks), bootstrap_iters=0)
        prompts = seen(llama)
        said = run(harness, ["mine"], include=str(tasks), bootstrap_iters=0)["samples"]["mine"]
    del llama.generate
    assert found["results"]["mine"]["exact_match,none"] == 0
    assert prompts[0].shape == (3, 62)  # nothing was cut
    with LMInfinite(n_local=16, n_global=4).on(llama):
        for sample in said:
            ids = tokenizer(sample["arguments"][0][0], return_tensors="pt")
            alone = llama.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
            assert sample["resps"] == [[tokenizer.decode(alone, skip_special_tokens=True)]]


def test_prompts_are_cut_where_the_task_asks(llama: Any, tokenizer: Any, tasks: Path) -> None:
    prompts = seen(llama)
    harness = harness_model(llama, tokenizer, max_length=24, batch_size=3)
    run(harness, ["mine", "longbench_mine"], include=str(tasks), bootstrap_iters=0)
    assert [[tokenizer.decode(row) for row in batch] for batch in prompts] == [
        [("0123456789" * 6 + "x" * n)[-20:] for n in (2, 1, 0)],
        ["0123456789" + ("0123456789" * 6 + "x" * n)[-10:] for n in (2, 1, 0)],
    ]
    mixed = harness.tok_batch_encode(["abcdefghij" * 3], left_truncate_len=6)[0]
    harness._middle = True
    assert tokenizer.decode(mixed[0]) == "efghij"
    assert tokenizer.decode(harness.tok_batch_encode(["abcdefghij" * 3], left_truncate_len=6)[0][0]) == "abchij"
    ids, mask = harness.tok_batch_encode(["abcdefghij", "ab"], left_truncate_len=4)
    assert [tokenizer.decode(row) for row in ids] == ["abij", "<eos><eos>ab"]
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_nothing_is_cut_in_silence_with_error(
    llama: Any, tokenizer: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = harness_model(llama, tokenizer, max_length=24, truncate="error")
    with pytest.raises(ValueError, match="a prompt has 62 tokens and there is room for 20"):
        run(harness, ["mine"], include=str(tasks), bootstrap_iters=0)
    # looking for it among all of lm-eval's takes seconds
    no_tasks = SimpleNamespace(all_tasks=[])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: no_tasks)
    with pytest.raises(ValueError, match="tasks yours: lm-eval has none of that name"):
        run(harness, ["yours"], include=str(tasks))


# -- every kind of request ---------------------------------------------------------------------------------------------
def requests(kind: str, *arguments: tuple[Any, ...], task: str = "mine") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i, (task, i, 1)) for i, given in enumerate(arguments)]


def watched(model: Any) -> list[torch.Tensor]:
    """The rows that the model reads from now on."""
    rows: list[torch.Tensor] = []
    forward = model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        rows.extend((args[0] if args else kwargs["input_ids"]).clone())
        return forward(*args, **kwargs)

    model.forward = watch
    return rows


@torch.no_grad()
def likelihood(model: Any, ids: list[int], answer: int) -> float:
    """Of the last so many tokens, by one forward."""
    logits = model(torch.tensor([ids])).logits[0, -answer - 1 : -1].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(ids[-answer:])[:, None]).sum())


CONTEXT = "0123456789" * 4
CUT = {"left": CONTEXT[-18:], "middle": CONTEXT[:9] + CONTEXT[-9:]}


@pytest.mark.parametrize(
    ("truncate", "task", "kept"),
    [
        ("left", "mine", "left"),
        ("left", "longbench_mine", "left"),
        ("middle", "mine", "middle"),
        ("auto", "mine", "left"),
        ("auto", "longbench_mine", "middle"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihoods_of_answers_are_cut_as_their_task_asks(
    llama: Any, tokenizer: Any, truncate: str, task: str, kept: str, batch_size: int
) -> None:
    pytest.importorskip("lm_eval")
    harness = harness_model(llama, tokenizer, max_length=20, truncate=truncate, batch_size=batch_size)
    asked = requests("loglikelihood", (CONTEXT, "abc"), ("short", "ab"), (CONTEXT, "xyz"), task=task)
    found = harness.loglikelihood(asked, disable_tqdm=True)
    ids = [tokenizer(text)["input_ids"] for text in (CUT[kept] + "abc", "shortab", CUT[kept] + "xyz")]
    expected = [likelihood(llama, row, n) for row, n in zip(ids, (3, 2, 3), strict=True)]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)


def test_tasks_of_both_kinds_in_one_call(llama: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    harness = harness_model(llama, tokenizer, max_length=20)
    rows = watched(llama)
    asked = [
        *requests("loglikelihood", (CONTEXT, "abc"), task="longbench_mine"),
        *requests("loglikelihood", (CONTEXT, "abc"), task="mine"),
    ]
    assert len(harness.loglikelihood(asked, disable_tqdm=True)) == 2
    del llama.forward
    assert [tokenizer.decode(row) for row in rows] == [CUT["left"] + "ab", CUT["middle"] + "ab"]


def test_error_refuses_every_kind_before_anything_is_read(llama: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    harness = harness_model(llama, tokenizer, max_length=20, truncate="error")
    rows = watched(llama)
    short = ("0123", "abc")
    with pytest.raises(ValueError, match="a prompt has 40 tokens and there is room for 18"):
        harness.loglikelihood(requests("loglikelihood", short, (CONTEXT, "abc")), disable_tqdm=True)
    until = {"until": [], "do_sample": False}
    groups = ("0123", {**until, "max_gen_toks": 4}), (CONTEXT, {**until, "max_gen_toks": 5})
    with pytest.raises(ValueError, match="a prompt has 40 tokens and there is room for 15"):
        harness.generate_until(requests("generate_until", *groups), disable_tqdm=True)
    with pytest.raises(ValueError, match=r"a text has 40 tokens and there is room for 20: .* truncate='error' refuses"):
        harness.loglikelihood_rolling(requests("loglikelihood_rolling", ("0123",), (CONTEXT,)), disable_tqdm=True)
    assert not rows
    del llama.forward
    assert len(harness.loglikelihood(requests("loglikelihood", short), disable_tqdm=True)) == 1
    # the last token of an answer is never read
    assert len(harness.loglikelihood(requests("loglikelihood", ("0" * 18, "abc")), disable_tqdm=True)) == 1


@pytest.mark.parametrize("truncate", ["left", "auto", "middle"])
def test_the_likelihood_of_a_text_counts_all_of_it_or_is_refused(llama: Any, tokenizer: Any, truncate: str) -> None:
    pytest.importorskip("lm_eval")
    harness = harness_model(llama, tokenizer, max_length=20, truncate=truncate)
    asked = requests("loglikelihood_rolling", ("01234567890123456789",))
    (found,) = harness.loglikelihood_rolling(asked, disable_tqdm=True)
    ids = [harness.prefix_token_id, *tokenizer("01234567890123456789")["input_ids"]]
    assert found == pytest.approx(likelihood(llama, ids, 20), abs=1e-4)
    asked = requests("loglikelihood_rolling", (CONTEXT,))
    if truncate == "middle":
        with pytest.raises(ValueError, match="nothing can be cut, so truncate='middle' refuses"):
            harness.loglikelihood_rolling(asked, disable_tqdm=True)
    else:
        assert len(harness.loglikelihood_rolling(asked, disable_tqdm=True)) == 1


def test_answers_that_fill_the_window(llama: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    harness = harness_model(llama, tokenizer, max_length=20)
    with pytest.raises(ValueError, match="an answer whose likelihood is asked for has 40 tokens"):
        harness.loglikelihood(requests("loglikelihood", ("0", CONTEXT)), disable_tqdm=True)
    settings = {"until": [], "do_sample": False, "max_gen_toks": 20}
    with pytest.raises(ValueError, match="an answer may take 20 tokens, and prompt and answer 20 together"):
        harness.generate_until(requests("generate_until", ("0", settings)), disable_tqdm=True)


def test_multiple_choice_and_chat_go_the_same_way(llama: Any, tokenizer: Any, tasks: Path) -> None:
    choices = TASK.replace("generate_until", "multiple_choice").replace("exact_match", "acc")
    choices = choices.replace('"{{{{text}}}}"', '"so {{{{text}}}}"')  # a number is none of the choices
    choices = choices.replace('doc_to_target: "{{{{answer}}}}"', "doc_to_choice: [abc, xyz]\ndoc_to_target: 0")
    choices = "\n".join(line for line in choices.split("\n") if not line.startswith("generation_kwargs"))
    for name in ("mine_choice", "longbench_choice"):
        (tasks / f"{name}.yaml").write_text(choices.format(name=name, path=tasks / "data.jsonl"))
    rows = watched(llama)
    harness = harness_model(llama, tokenizer, max_length=20)
    run(harness, ["mine_choice", "longbench_choice"], include=str(tasks), bootstrap_iters=0)
    del llama.forward
    begun = {tokenizer.decode(row)[:5] for row in rows}
    assert "so 01" in begun  # the middle was cut
    assert len(begun) > 1
    strict = harness_model(llama, tokenizer, max_length=20, truncate="error")
    with pytest.raises(ValueError, match=r"a prompt has 6[0-9] tokens"):
        run(strict, ["mine_choice"], include=str(tasks), bootstrap_iters=0)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    try:
        with pytest.raises(ValueError, match=r"a prompt has 6[0-9] tokens"):
            run(strict, ["mine_choice"], include=str(tasks), bootstrap_iters=0, apply_chat_template=True)
    finally:
        tokenizer.chat_template = None
