"""`Trainer`: full and LoRA runs equal a hand-written loop, save the method, resume, and checkpoint activations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments

import hf_longctx
from tests.contract.registry import differs, same
from tests.tiny import logits_of, text, tiny
from tests.wrapping.cases import METHODS, saved

ROWS = text(8, 24)
RATE = 1e-2
KINDS = ("full", "lora")
each_run = pytest.mark.parametrize(
    ("kind", "method"),
    [pytest.param(k, METHODS[m], id=f"{k}-{m}") for k in KINDS for m in ("lm_infinite", "rope_scaling")],
)


class Rows(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": ROWS[index], "labels": ROWS[index]}


class InOrder(Trainer):
    """Takes the rows as they stand, so that a loop by hand can, too."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def model_of(kind: str, method: Any, base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    if kind == "lora":
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    method.apply(model)
    return model


def trainer(model: Any, out: Path, **kwargs: Any) -> InOrder:
    fields = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "disable_tqdm": True,
    }
    return InOrder(model=model, args=TrainingArguments(**{**fields, **kwargs}), train_dataset=Rows())


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def by_hand(model: Any, steps: int = 4) -> list[float]:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    seen = []
    for step in range(steps):
        rows = ROWS[2 * step : 2 * step + 2]
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient-checkpointing"])
@each_run
def test_trainer_equals_a_loop_by_hand_and_saves_the_method(
    kind: str, method: Any, checkpointing: bool, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)  # LoRA's first weights
    hand = by_hand(model_of(kind, method, base))
    torch.manual_seed(0)
    model = model_of(kind, method, base)
    before = logits_of(model.eval(), ROWS)
    run = trainer(model, tmp_path / "run", gradient_checkpointing=checkpointing)
    run.train()
    # the same numbers, but Trainer divides the loss's sum by the count of labels instead of taking the mean
    assert losses(run) == pytest.approx(hand, rel=1e-5)
    trained = logits_of(model.eval(), ROWS)
    differs(trained, before)
    run.save_model(str(tmp_path / "saved"))
    if kind == "full":
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    else:
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved")
    same(logits_of(loaded, ROWS), trained)
    hf_longctx.undo(model)
    differs(logits_of(model, ROWS), trained)


@each_run
def test_a_run_resumes_from_its_checkpoint(kind: str, method: Any, base: Path, tmp_path: Path) -> None:
    kwargs = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    torch.manual_seed(0)
    whole = trainer(model_of(kind, method, base), tmp_path / "run", **kwargs)
    whole.train()
    torch.manual_seed(1)  # what is resumed does not depend on the first weights
    again = model_of(kind, method, base)
    resumed = trainer(again, tmp_path / "again", **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    same(logits_of(again.eval(), ROWS), logits_of(whole.model.eval(), ROWS))
    assert [p.method for p in hf_longctx.applied(again)] == [method]


def test_the_saved_config_says_use_cache_false_and_generation_uses_its_cache_all_the_same(
    base: Path, tmp_path: Path
) -> None:
    method = METHODS["lm_infinite"]
    run = trainer(model_of("full", method, base), tmp_path / "run", max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["use_cache"] is False
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), text(1, 20)
    out = model.generate(ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    assert out.past_key_values is not None
    same(out.sequences, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    assert model(ids).past_key_values is None  # a forward does what the config says
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 20
    cache = DynamicCache()
    model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 20


def test_undo_after_training_keeps_the_trainers_own_change_of_the_config(base: Path, tmp_path: Path) -> None:
    model = model_of("full", METHODS["lm_infinite"], base)
    trainer(model, tmp_path / "run", max_steps=1).train()
    hf_longctx.undo(model)
    assert model.config.use_cache is False
    assert model.config.hf_longctx is None
    stock = tiny()
    stock.load_state_dict(model.state_dict())
    same(logits_of(model.eval(), ROWS), logits_of(stock, ROWS))
