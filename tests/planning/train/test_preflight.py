"""The preflight: a batch that does not fit is refused before its step, with the numbers and the cheapest remedy."""

from __future__ import annotations

import functools
import logging
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, Trainer, TrainingArguments

from hf_longctx import SequenceParallel, TrainingMemory
from hf_longctx.planning.train import Preflight, preflight
from hf_longctx.planning.train.fits import Room
from hf_longctx.planning.train.settings import optimizer_of, settings_of
from hf_longctx.training import preflight as hook
from hf_longctx.training.preflight import PreflightMixin

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=10**7,
)  # fmt: skip


class PreflightTrainer(PreflightMixin, Trainer):
    """A stock Trainer with the preflight."""


def model(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_config(CONFIG, dtype=dtype)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=1, per_device_train_batch_size=1, disable_tqdm=True, **more
    )


def trainer(folder: Path, room: Room, monkeypatch: pytest.MonkeyPatch, **more: Any) -> PreflightTrainer:
    monkeypatch.setattr(hook, "preflight", functools.partial(preflight, room=room))
    ids = torch.arange(48) % 64
    return PreflightTrainer(
        model=model(), args=arguments(folder), train_dataset=[{"input_ids": ids, "labels": ids}], **more
    )


def checked(folder: Path, room: Room, of: Any = None, **settings: Any) -> Preflight:
    found = preflight(model() if of is None else of, arguments(folder), room=room, **settings)
    assert found is not None
    return found


def test_a_step_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer(tmp_path, Room(10**10), monkeypatch).train().global_step == 1


def test_one_that_does_not_is_refused_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"A batch of 48 tokens does not fit: a card needs .* set preflight=False"):
        trainer(tmp_path, Room(10**9), monkeypatch).train()


def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer(tmp_path, Room(10**9), monkeypatch, preflight=False).train().global_step == 1


@pytest.mark.parametrize("fused", [False, True])
def test_logits_that_trl_does_not_make_are_not_counted(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = trainer(tmp_path, Room(10**10), monkeypatch), dict[str, Any]()
    stock = made.model.forward

    @functools.wraps(type(made.model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **given: Any) -> Any:
        return stock(*args, **given)

    if fused:
        made.model.forward = types.MethodType(forward, made.model)
    made = PreflightTrainer(model=made.model, args=made.args, train_dataset=made.train_dataset)
    monkeypatch.setattr(hook, "preflight", lambda *_, **settings: asked.update(settings))
    made.train()
    assert asked["chunked_loss"] is fused


def test_the_cheapest_setting_is_named(tmp_path: Path) -> None:
    found = checked(tmp_path, Room(3 * 10**9), chunked_loss=False, degree=1, kind="stock")
    found.check(1000)
    with pytest.raises(
        ValueError, match=r"The cheapest that fits: (TrainingMemory|gradient_checkpointing).* a step"
    ) as told:
        found.check(300_000)
    assert "At most" in str(told.value)


def test_host_memory_is_looked_at_and_said_with_bytes(tmp_path: Path) -> None:
    more = arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"offload": True})
    found = preflight(model(), more, room=Room(10**12, 10**9))
    assert found is not None
    assert found.run.offload
    with pytest.raises(ValueError, match=r"the host needs .* bytes\) of pinned memory"):
        found.check(1000)


def test_a_batch_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checked(tmp_path, Room(10**12))
    asked: list[int] = []
    monkeypatch.setattr(type(found.search), "option", lambda self, run: asked.append(run.tokens) or option)
    option = type(
        "Option", (), {"lacks": "", "need": type("N", (), {"device": 1}), "time": type("T", (), {"step": 1.0})}
    )
    for tokens in (10, 5, 10, 20, 7):
        found.check(tokens)
    assert asked == [10, 20]


def test_what_arguments_and_models_say(tmp_path: Path) -> None:
    assert settings_of(model(), arguments(tmp_path))["precision"] == "fp32"
    assert settings_of(model(), arguments(tmp_path, bf16=True))["precision"] == "mixed"
    assert settings_of(model(torch.bfloat16), arguments(tmp_path))["precision"] == "bf16"
    assert settings_of(model(), arguments(tmp_path, gradient_checkpointing=True))["checkpointing"]
    assert not settings_of(model(), arguments(tmp_path))["offload"]
    frozen = model(torch.bfloat16).requires_grad_(False)
    frozen.lm_head.weight = torch.nn.Parameter(torch.zeros(64, 32))
    found = settings_of(frozen, arguments(tmp_path))
    assert (found["precision"], found["trained"]) == ("bf16", 64 * 32)
    for name, ours in {
        "adamw_torch": "adamw_foreach",
        "adamw_torch_fused": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "sgd": "sgd",
    }.items():
        assert optimizer_of(name) == ours


def test_switches_on_the_model_are_seen() -> None:
    of = model()
    with SequenceParallel(degree=1).on(of):
        assert hook._settings(of, 4) == {"degree": 1, "kind": "auto", "chunked_loss": False}
    assert hook._settings(of, 4) == {"degree": 1, "kind": "stock", "chunked_loss": False}
    with SequenceParallel(degree="auto").on(of):
        assert hook._settings(of, 4)["degree"] == 4, "all processes share a batch"
    with TrainingMemory(tile=16, remat="attention").on(of):
        ladder = {"chunked_loss": True, "tile": 16, "remat": "attention", "keep_on_host": False, "fused_norms": False}
        assert hook._settings(of, 4) == {"degree": 1, "kind": "stock", **ladder}


def test_groups_that_are_planned_are_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trainer(tmp_path, Room(10**10), monkeypatch)
    with SequenceParallel(degree="auto").on(given.model):
        assert given.train().global_step == 1
    assert isinstance(given._preflight, Preflight)
    assert given._preflight.run.ranks == given._preflight.run.gpus


def test_checkpointing_of_the_model_itself_is_seen(tmp_path: Path) -> None:
    of = model()
    of.gradient_checkpointing_enable({"use_reentrant": False})
    assert settings_of(of, arguments(tmp_path))["checkpointing"]
    with TrainingMemory(remat="attention").on(of):
        assert checked(tmp_path, Room(10**10), of, **hook._settings(of, 1)).run.remat == "attention"


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert torch.cuda.is_available() or preflight(model(), arguments(tmp_path)) is None
    quantized = model()
    quantized.is_quantized = True
    assert preflight(quantized, arguments(tmp_path), room=Room(1)) is None
    assert preflight(torch.nn.Linear(2, 2), arguments(tmp_path), room=Room(1)) is None
    other = torch.nn.Linear(2, 2)
    other.config = BertConfig()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        assert preflight(other, arguments(tmp_path), room=Room(1)) is None
    assert "no prediction of memory" in caplog.text
