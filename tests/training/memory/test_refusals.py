"""What the ladder cannot do is refused by name, and what does nothing is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from hf_longctx import SequenceParallel, TrainingMemory
from tests.families.table import model_of
from tests.parallel.models import batch, checkpointed, make

from .rungs import ALL, LADDERS, step

DENSE = batch([[141]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "tile=0: expected how many tokens"),
        ({"remat": "mlp"}, "remat='mlp': expected 'attention'"),
        ({"offload": True}, "set gradient_checkpointing_kwargs={'offload': True} of transformers"),
        ({"chunked_loss": False, "tile": None}, "every rung is off"),
        ({"tile": "8k"}, "tile='8k' is str, expected int or None"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainingMemory(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_offload_without_cuda() -> None:
    with pytest.raises(ValueError, match="offload=True: expected CUDA, and there is none"):
        TrainingMemory(remat="attention", offload=True).apply(make("llama"))


def test_other_models() -> None:
    with pytest.raises(ValueError, match="Linear: expected a model of transformers"):
        TrainingMemory().apply(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs a language modelling head"):
        TrainingMemory().apply(LlamaForSequenceClassification(make("llama").config))
    model = make("llama")
    model.loss_function = torch.nn.functional.cross_entropy
    with pytest.raises(ValueError, match="its loss function is cross_entropy"):
        TrainingMemory().apply(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"])),
        lambda model: get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
        lambda model: model.resize_token_embeddings(120, mean_resizing=False) and model,
    ],
    ids=["adapted", "saved", "resized"],
)
def test_a_head_that_came_later(change: Callable[[Any], Any]) -> None:
    model = make("llama")
    patch = TrainingMemory(tile=None).apply(model)
    changed = change(model)
    with pytest.raises(ValueError, match="is not the one that it had when TrainingMemory was applied"):
        step(changed, DENSE)
    patch.undo()
    right = step(changed, DENSE)
    TrainingMemory(tile=None).apply(changed)
    assert step(changed, DENSE)[0] == pytest.approx(right[0], rel=1e-5)


def test_experts_are_named() -> None:
    with pytest.raises(ValueError, match=r"no MLP can be tiled \(4 x Qwen3MoeSparseMoeBlock with"):
        TrainingMemory().apply(model_of("qwen3_moe"))


def test_experts_beside_mlps_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_longctx"), TrainingMemory().on(model_of("deepseek_v3")):
        assert "1 MLPs are tiled, and these parts of layers are not: 3 x DeepseekV3MoE" in caplog.text


def test_an_mlp_whose_tokens_see_each_other() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x + x.roll(1, 1))
            return out

    model = make("llama")
    for layer in model.model.layers:
        layer.mlp = Shifted(layer.mlp)
    with pytest.raises(ValueError, match="3 x Shifted lets tokens see each other"):
        TrainingMemory().apply(model)


def test_a_model_that_does_something_else_with_its_logits() -> None:
    model = make("llama")
    TrainingMemory(tile=None).apply(model)
    inner = model.lm_head.forward
    for change, message in {
        lambda logits: logits[..., :5]: "takes a part of its logits",
        lambda logits: torch.softmax(logits, -1): "calls softmax of its logits",
        lambda logits: logits.argmax(-1): "uses .argmax of its logits",
        lambda logits: logits * torch.ones(97): "combines its logits with another tensor",
    }.items():
        model.lm_head.forward = lambda x, change=change: change(inner(x))
        with pytest.raises(ValueError, match=f"the model {message} before the loss"):
            step(model, DENSE)


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels[:, :5], r"shape \(1, 5\) and torch.int64"),
        (lambda labels: labels[:, :0], r"shape \(1, 0\)"),
        (lambda labels: labels.repeat(2, 1), r"shape \(2, 141\)"),
        (lambda labels: labels.float(), "torch.float32"),
        (lambda labels: labels > 0, "torch.bool"),
        (lambda labels: labels.tolist(), "list"),
    ],
)
def test_labels_that_are_not_one_for_each_token(name: str, change: Callable[[Any], Any], said: str) -> None:
    """The stock model refuses them too, in words of torch."""
    model, given = make("llama"), {**DENSE}
    given |= {name: change(given["labels"])}
    with pytest.raises((ValueError, RuntimeError, TypeError, AttributeError)):
        model(**given)
    before = step(model, DENSE)
    with TrainingMemory().on(model):
        with pytest.raises(ValueError, match=rf"^{name} of .*{said}.*: expected .* \(1, 141\), one for each token"):
            model(**given)
        loss = model(**DENSE).loss
        torch.testing.assert_close(loss.item(), before[0], rtol=1e-6, atol=0)
    assert step(model, DENSE)[0] == before[0]


@pytest.mark.parametrize("rungs", ["chunked_loss", "tile", "remat"])
def test_a_rung_twice(rungs: str) -> None:
    model = make("llama")
    with LADDERS[rungs].on(model), pytest.raises(ValueError, match="already"):
        ALL.apply(model)


def test_rungs_one_after_the_other() -> None:
    model = make("llama")
    for rungs in ("remat", "tile", "chunked_loss"):
        LADDERS[rungs].apply(model)
    checkpointed(model, "plain")
    assert "logits" not in model(**DENSE)


def test_the_order_with_sequence_parallelism() -> None:
    model = make("llama")
    with SequenceParallel(degree=1).on(model), pytest.raises(ValueError, match="before SequenceParallel, which is on"):
        ALL.apply(model)


@pytest.mark.parametrize("first", [True, False])
def test_reentrant_checkpointing(first: bool) -> None:
    model = make("llama")
    acts: list[Callable[[], Any]] = [lambda: checkpointed(model, "reentrant"), lambda: ALL.apply(model)]
    acts.pop(0 if first else 1)()
    with pytest.raises(ValueError, match="checkpointing of the kind use_reentrant=False"):
        acts[0]()


def test_another_choice_of_what_is_kept() -> None:
    model = make("llama")
    ALL.apply(model)
    with pytest.raises(ValueError, match="checkpointing has a context_fn already"):
        checkpointed(model, "plain", context_fn=lambda: None)


def test_attention_without_an_operator() -> None:
    model = make("llama")
    model.set_attn_implementation("eager")
    LADDERS["remat"].apply(model)
    checkpointed(model, "plain")
    with pytest.raises(ValueError, match="attn_implementation='eager' attends without an operator"):
        step(model, DENSE)


def test_a_second_backward() -> None:
    model = make("llama")
    LADDERS["remat"].apply(model)
    checkpointed(model, "plain")
    loss = model(**DENSE).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs more often in recomputation"):
        loss.backward()


def test_kept_attention_without_checkpointing_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("llama")
    with caplog.at_level(logging.WARNING, "hf_longctx"), LADDERS["remat"].on(model):
        step(model, DENSE)
        step(model, DENSE)
    assert caplog.text.count("nothing to keep: turn on checkpointing") == 1


def test_a_tile_larger_than_the_batch_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("llama")
    with caplog.at_level(logging.INFO, "hf_longctx"), TrainingMemory(chunked_loss=False).on(model):
        step(model, DENSE)
        step(model, DENSE)
    assert caplog.text.count("tile=8192: a batch of 141 tokens is computed at once") == 1
