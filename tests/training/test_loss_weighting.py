"""What weighs the same in a loss, against slow references: one document at a time, in float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf_longctx.training import LossWeightingMixin, LossWeightingTrainer, PackCollator, TrainingMemoryMixin, pack
from hf_longctx.training.losses.targets import Targets
from tests.tiny import tiny

EXACT = 1e-5
# renamed in transformers 5.23
CHECKPOINTING = next(
    f"{x}_checkpointing" for x in ("activation", "gradient") if hasattr(TrainingArguments, f"{x}_checkpointing")
)


def rows(count: int = 24, seed: int = 0) -> list[dict[str, list[int]]]:
    """Documents of 2 to 40 tokens, of which some have few targets."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        ids = [rng.randrange(3, 60) for _ in range(rng.randrange(2, 40))]
        first = rng.randrange(1, len(ids))
        found.append({"input_ids": ids, "labels": [-100] * first + ids[first:]})
    return found


def reference(model: Any, documents: list[dict[str, list[int]]], weighting: str) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step and its gradients: every document alone, in float64."""
    model = model.double()
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in documents:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count = int((labels[1:] != -100).sum())
        total = total + (nll / count if weighting == "sequence" else nll)
    targets = sum(label != -100 for row in documents for label in row["labels"][1:])
    loss = total / (len(documents) if weighting == "sequence" else targets)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


def arguments(folder: str, **more: Any) -> TrainingArguments:
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    steps = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 1, "optim": "sgd", "weight_decay": 0.1}
    return TrainingArguments(folder, **{**quiet, **steps, "max_grad_norm": 0.0, **more})


class Catching(Trainer):
    """Keeps the gradients of its step."""

    def _clip_grad_norm(self, model: Any) -> Any:
        self.grads = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return None


class Caught(LossWeightingMixin, Catching):
    pass


def trained(folder: Path, batches: list[Any], collate: Any, cls: Any = Caught, **more: Any) -> Any:
    settings = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": len(batches), **more}
    weighting, model = settings.pop("loss_weighting", "token"), settings.pop("model", None)
    trainer = cls(
        model=tiny("llama") if model is None else model,
        args=arguments(str(folder), max_grad_norm=1.0, **settings),
        train_dataset=batches,
        data_collator=collate,
        loss_weighting=weighting,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("weighting", ["token", "sequence"])
@pytest.mark.parametrize("form", ["packed", "rows padded on the right", "rows padded on the left"])
def test_values_and_gradients(weighting: str, form: str, tmp_path: Path) -> None:
    documents = rows()
    if form == "packed":
        packs = pack(documents, 80)
        batches: list[Any] = [packs[n] for n in range(len(packs))]
        trainer = trained(tmp_path, batches, PackCollator(), loss_weighting=weighting)
    else:
        batches = [documents[n : n + 4] for n in range(0, len(documents), 4)]
        side = form.split()[-1]
        trainer = trained(tmp_path, batches, lambda given: padded(given[0], side), loss_weighting=weighting)
    loss, grads = reference(tiny("llama"), documents, weighting)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=EXACT)
    for name, right in grads.items():
        assert float((trainer.grads[name] - right).norm() / right.norm()) < EXACT, name


def padded(given: list[dict[str, list[int]]], side: str) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in given)

    def filled(values: list[int], filler: int) -> list[int]:
        rest = [filler] * (width - len(values))
        return values + rest if side == "right" else rest + values

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], 0) for row in given]),
        "labels": torch.tensor([filled(row["labels"], -100) for row in given]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in given]),
        "position_ids": torch.tensor([filled([*range(len(row["input_ids"]))], 0) for row in given]),
    }


def test_the_weightings_differ() -> None:
    losses = [reference(tiny("llama"), rows(), weighting)[0] for weighting in ("token", "sequence")]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_end_of_a_packed_document_predicts_nothing_whatever_the_labels_say() -> None:
    batch = PackCollator()([{"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]}])
    batch["labels"] = batch["input_ids"].clone()
    targets = Targets.of(batch)
    assert targets.next_BT.tolist() == [[6, -100, 8, 9, -100]]
    assert targets.document_BT.tolist() == [[1, 1, 2, 2, 2]]
    assert targets.weights().tolist() == [[1.0, 0.0, 0.5, 0.5, 0.0]]
    assert int((targets.counted("sequence") != -100).sum()) == 2
    edges = {**batch, "position_ids": None, "cu_seq_lens_q": torch.tensor([0, 2, 5])}
    assert torch.equal(Targets.of(edges).document_BT, targets.document_BT)


EMPTY = {"input_ids": [5, 6, 7], "labels": [-100] * 3}


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_a_step_without_targets_is_skipped(weighting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = [rows(1)[0], EMPTY, EMPTY, rows(1, 1)[0]]
    seen = []

    class Watching(LossWeightingTrainer):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            seen.append([p.detach().clone() for p in self.model.parameters()])
            super().log(logs, *args, **kwargs)

    trainer = trained(
        tmp_path, batches, PackCollator(), Watching, loss_weighting=weighting, max_steps=4, optim="adamw_torch",
        gradient_accumulation_steps=1,
    )  # fmt: skip
    losses = [log["loss"] for log in trainer.state.log_history if "grad_norm" in log]
    assert losses[1:3] == [0.0, 0.0]
    assert losses[0] > 0
    assert losses[3] > 0
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {2}
    assert "step 2 has no target tokens on any process: it is skipped" in caplog.text


def test_a_micro_batch_without_targets(tmp_path: Path) -> None:
    documents = rows(3)
    for weighting in ("token", "sequence"):
        batches = [documents[0], EMPTY, *documents[1:]]
        trainer = trained(tmp_path, batches, PackCollator(), loss_weighting=weighting)
        loss, grads = reference(tiny("llama"), documents, weighting)
        assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=EXACT)
        for name, right in grads.items():
            assert float((trainer.grads[name] - right).norm() / right.norm()) < EXACT, name


def test_evaluation(tmp_path: Path) -> None:
    documents = rows(4)
    packs = pack(documents, 1000)
    assert len(packs) == 1
    for weighting in ("token", "sequence"):
        trainer = LossWeightingTrainer(
            model=tiny("llama"), args=arguments(str(tmp_path)), eval_dataset=packs, data_collator=PackCollator(),
            loss_weighting=weighting,
        )  # fmt: skip
        right = reference(tiny("llama"), documents, weighting)[0]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(right, rel=EXACT)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = trained(tmp_path, rows(2), PackCollator(), LossWeightingTrainer, loss_weighting="sequence").model
    assert "forward" not in vars(model)
    assert model.loss_function.__name__ == "ForCausalLMLoss"


def test_a_model_that_computes_its_loss_itself_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(inputs["input_ids"], use_cache=False).logits.sum()

    class Weighted(LossWeightingMixin, Own):
        pass

    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM does not compute its loss by model\.loss_function"):
        trained(tmp_path, rows(1), PackCollator(), Weighted, loss_weighting="sequence")


@pytest.mark.parametrize("family", ["gemma3", "gpt_neox", "mistral", "qwen3", "smollm3"])
def test_families(family: str, tmp_path: Path) -> None:
    documents = rows(6)
    packs = pack(documents, 60)
    batches = [packs[n] for n in range(len(packs))]
    trainer = trained(tmp_path, batches, PackCollator(), loss_weighting="sequence", model=tiny(family))
    loss, grads = reference(tiny(family), documents, "sequence")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=EXACT)
    for name, right in grads.items():
        assert float((trainer.grads[name] - right).norm() / right.norm().clamp(min=1e-12)) < EXACT, name


def test_under_lora_and_checkpointing(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    documents, found = rows(6), {}
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj", "v_proj"]))
        more = {CHECKPOINTING: True} if checkpointed else {}
        trainer = trained(tmp_path, documents, PackCollator(), loss_weighting="sequence", model=model, **more)
        found[checkpointed] = trainer.grads
        right = reference(tiny("llama"), documents, "sequence")[0]  # an adapter that is not trained changes nothing
        assert trainer.state.log_history[0]["loss"] == pytest.approx(right, rel=EXACT)
    assert found[True].keys() == found[False].keys()
    assert any(g.any() for g in found[False].values())
    for name, right in found[False].items():
        torch.testing.assert_close(found[True][name], right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss_weighting": "document"}, "loss_weighting='document': expected 'token' or 'sequence'"),
        ({"loss_weighting": "sequence", "label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 computes a loss"),
    ],
)
def test_settings(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, rows(1), PackCollator(), **more)


def test_a_batch_without_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss_weighting needs labels in the batch, and it has \['input_ids'"):
        trained(tmp_path, rows(1), lambda given: {"input_ids": torch.tensor([given[0]["input_ids"]])})


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_under_a_chunked_loss(weighting: str, tmp_path: Path) -> None:
    class Chunked(LossWeightingMixin, TrainingMemoryMixin, Catching):
        pass

    documents = rows()
    packs = pack(documents, 80)
    batches = [packs[n] for n in range(len(packs))]
    trainer = trained(tmp_path, batches, PackCollator(), Chunked, loss_weighting=weighting)
    loss, grads = reference(tiny("llama"), documents, weighting)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=EXACT)
    for name, right in grads.items():
        assert float((trainer.grads[name] - right).norm() / right.norm()) < EXACT, name
