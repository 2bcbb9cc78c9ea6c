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
    with pytest.raises(ImportError, match=r"hf-longctx\[lm-eval\]"):
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
