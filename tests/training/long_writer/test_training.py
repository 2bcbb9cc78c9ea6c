"""recipes/long_writer trains by TRL: its smoke form, an interruption, a loss of nan, and what TRL is given."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytest.importorskip("trl")

from datasets import Dataset
from trl import pack_dataset

from hf_longctx.hub.resolve import load_model, load_tokenizer
from hf_longctx.parallel.model.documents import IGNORED
from hf_longctx.training.preflight import has_fused_head
from recipes.clock import Clock
from recipes.long_dpo.pairs import read_pairs
from recipes.long_dpo.train import fitting
from recipes.long_dpo.trainer import dpo_trainer
from recipes.long_writer import chain, train_dpo, train_grpo, train_sft
from recipes.long_writer.curriculum import packs_by_length
from recipes.long_writer.data import sft_documents
from recipes.long_writer.progress import Sizes
from recipes.long_writer.smoke import check, figures, prepare
from recipes.long_writer.trainers import trainers
from tests.optional import hide, optional

from .made import elsewhere

EXACT = 1e-5
STAGES = {"sft": train_sft, "dpo": train_dpo, "grpo": train_grpo}


@pytest.fixture(scope="module")
def whole(config: dict[str, Any]) -> dict[str, Any]:
    return chain.run(config)


def weights(config: dict[str, Any], stage: str) -> dict[str, torch.Tensor]:
    return load_file(Path(config["out"]) / stage / "model/model.safetensors")


def trainer_of(stage: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """The trainer of a stage, which has not begun."""

    class MadeError(Exception):
        pass

    def run(make: Callable[[Clock], Any], stage: str, config: dict[str, Any], *_: Any, **__: Any) -> None:
        raise MadeError(make(Clock(config[stage]["steps"], None, Path(config["out"], stage, "seconds.json"))))

    monkeypatch.setattr(STAGES[stage], "run", run)
    with pytest.raises(MadeError) as made:
        STAGES[stage].train(config, **more)
    return made.value.args[0]


def test_smoke(config: dict[str, Any], whole: dict[str, Any]) -> None:
    out = Path(config["out"])
    check(figures(whole, out))
    kept = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {"commit", "hardware", "command", "date"} <= set(kept)
    assert {"hf_longctx", "transformers", "torch", "trl"} <= set(kept["versions"])
    assert list(kept["lines"]) == ["untrained", "untrained, end token banned", "sft", "dpo", "grpo"]
    rows = {one["what"]: one for one in kept["rows"]}
    exact = rows["grpo: answers of 60 tokens that are exact"]
    assert set(exact["beside"]) == {"untrained", "untrained, end token banned", "sft", "dpo"}
    for stage in STAGES:
        model: Any = AutoModelForCausalLM.from_pretrained(out / stage / "model")
        assert type(model).__name__ == "LlamaForCausalLM"
        assert model.config.use_cache
        assert "hf_longctx" not in (out / stage / "model/config.json").read_text(encoding="utf-8")


def test_a_chain_takes_the_packages_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {module for package in chain.packages for module in package.modules}
    assert named >= {"trl", "datasets", "jinja2"}
    # datasets, which has seen pillow, would ask for it
    hide(monkeypatch, *optional() - named - {"PIL"})
    assert list(chain.run(prepare(tmp_path))["stages"]) == ["sft", "dpo", "grpo"]


def test_each_step_of_the_reinforcement_is_in_the_report(config: dict[str, Any], whole: dict[str, Any]) -> None:
    report = json.loads((Path(config["out"]) / "grpo/report.json").read_text(encoding="utf-8"))
    curve = report["curve"]
    assert set(curve) == {"reward", "spread", "equal groups", "ended", "length", "repeated"}
    assert all(len(values) == 2 and None not in values for values in curve.values())
    # TRL counts the same groups, answers and rewards
    assert curve["equal groups"] == pytest.approx([log["frac_reward_zero_std"] for log in report["logs"]])
    clipped = [log["completions/clipped_ratio"] for log in report["logs"]]
    assert curve["ended"] == pytest.approx([1 - share for share in clipped])
    assert sum(curve["ended"]) > 0
    assert any(log["grad_norm"] > 0 for log in report["logs"])


def test_every_end_is_a_target_of_trl(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(config["model"])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    trainer = trainer_of("sft", elsewhere(config, tmp_path, sft={"steps": 10}), monkeypatch)
    ends = documents = 0
    for batch in trainer.get_train_dataloader():
        documents += int((batch["position_ids"] == 0).sum())
        ends += int((batch["labels"] == tokenizer.eos_token_id).sum())
        assert "attention_mask" not in batch
    assert ends == documents >= 36


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_the_loss_of_packs_is_that_of_their_documents(
    weighting: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Values and gradients, by a plain forward of each document."""
    changed = elsewhere(config, tmp_path, sft={"loss_weighting": weighting})
    trainer = trainer_of("sft", changed, monkeypatch)
    (batch,), items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    edges = batch["cu_seq_lens_q"].tolist()
    slow = load_model(config["model"], dtype=torch.float32)
    nll = []
    for start, end in pairwise(edges):
        ids, labels = (batch[name][:, start:end] for name in ("input_ids", "labels"))
        logits = slow(ids).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="none")
        nll.append(each[labels[0, 1:] != IGNORED])
    assert len(nll) > 1
    right = torch.cat(nll).mean() if weighting == "token" else torch.stack([one.mean() for one in nll]).mean()
    right.backward()
    model = trainer.model.train()
    found = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
    found.backward()
    assert float(found) == pytest.approx(float(right), rel=EXACT)
    for name, one in slow.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, one.grad, rtol=1e-4, atol=EXACT)


def test_packs_are_those_of_trl(config: dict[str, Any]) -> None:
    documents = sft_documents(load_tokenizer(config["model"]), config).rows
    rows = Dataset.from_list([{key: list(one[key]) for key in ("input_ids", "labels")} for one in documents])
    right = pack_dataset(rows, config["context"], "bfd_split")
    ours = packs_by_length(documents, config["context"], stages=1)
    assert sorted(sorted(row["seq_lengths"]) for row in ours) == sorted(sorted(row) for row in right["seq_lengths"])
    # the first token of a document is a target for TRL's rows only, whose collator takes it away
    assert sum(len(row["input_ids"]) for row in ours) == sum(map(len, right["input_ids"]))


def test_a_chain_that_is_killed_keeps_what_it_measured(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setitem(chain.STAGES, "sft", killed)
    with pytest.raises(InterruptedError):
        chain.run(elsewhere(config, tmp_path, chain={"dpo": 0.0}))
    kept = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert list(kept["lines"]) == ["untrained", "untrained, end token banned"]
    assert all(line["tasks"] and line["writing"] for line in kept["lines"].values())
    assert kept["versions"]
    assert kept["rows"] == []


class InterruptedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("stage", "steps"), [("sft", 4), ("dpo", 1), ("grpo", 1)])
def test_resumed_is_bit_equal(
    stage: str,
    steps: int,
    config: dict[str, Any],
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = config[stage] | {"training": config[stage]["training"] | {"save_steps": steps}}
    changed = elsewhere(config, tmp_path, **{stage: own})
    start = {"sft": None}.get(stage, str(Path(config["out"]) / "sft/model"))
    train = STAGES[stage].train
    with monkeypatch.context() as broken:
        stock = Clock.on_step_end

        def on_step_end(self: Clock, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step > steps:
                raise KeyboardInterrupt if stage == "sft" else InterruptedError
            stock(self, args, state, control, **kwargs)

        broken.setattr(Clock, "on_step_end", on_step_end)
        with pytest.raises((SystemExit, InterruptedError)) as said:
            train(changed, model=start)
        if stage == "sft":
            assert f"interrupted after {steps + 1} steps; --resume goes on" in str(said.value)
    assert not (tmp_path / f"out/{stage}/model").exists()
    with pytest.raises(ValueError, match="Go on with --resume"):
        train(changed, model=start)
    if stage == "sft":
        with pytest.raises(ValueError, match="--resume: data, seed changed since the training"):
            train(changed | {"seed": 1}, model=start, resume=True)
    train(changed, model=start, resume=True)
    right = weights(config, stage)
    for name, one in weights(changed, stage).items():
        assert torch.equal(one, right[name]), name


def test_a_chain_that_was_killed_goes_on_with_what_is_not_complete(
    config: dict[str, Any],
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in a stage, then between the stage and its scores: weights are those of a chain that was not."""
    changed = elsewhere(config, tmp_path, dpo={"training": config["dpo"]["training"] | {"save_steps": 1}})
    measured: list[str] = []
    dead: set[str] = set()
    stock = Clock.on_step_end

    def on_step_end(self: Clock, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "a step" in dead and "dpo" in args.output_dir and state.global_step > 1:
            raise InterruptedError
        stock(self, args, state, control, **kwargs)

    def scored(model: str, *_: Any, sizes: Sizes, **__: Any) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            if "scores" in dead and "dpo" in model:
                raise InterruptedError
            measured.append(Path(model).parent.name)
            return dict(whole["lines"]["sft"])

        return sizes.run("all", measure)

    monkeypatch.setattr(chain, "STAGES", {"sft": train_sft.train, "dpo": train_dpo.train})
    monkeypatch.setattr(chain, "scored", scored)
    monkeypatch.setattr(Clock, "on_step_end", on_step_end)
    for killed, resume in (("a step", False), ("scores", True)):
        dead.add(killed)
        with pytest.raises(InterruptedError):
            chain.run(changed, resume=resume)
        dead.remove(killed)
    with pytest.raises(ValueError, match=r"holds a training\. Go on with --resume"):
        chain.run(changed)
    with pytest.raises(ValueError, match="cells of another run: seed was 0 and is 1"):
        chain.run(changed | {"seed": 1}, resume=True)
    capsys.readouterr()
    report = chain.run(changed, resume=True)
    said = capsys.readouterr().out
    assert all(f"{name} is complete in {tmp_path / 'out' / name}: skipped" in said for name in ("sft", "dpo"))
    assert "the scores of sft (all) are complete: skipped" in said
    assert measured.count("sft") == measured.count("dpo") == 1
    assert len(measured) == 4
    assert list(report["stages"]) == ["sft", "dpo"]
    for stage in report["stages"]:
        right = weights(config, stage)
        assert all(torch.equal(one, right[name]) for name, one in weights(changed, stage).items())


def test_a_call_whose_minutes_are_over_is_gone_on_with(
    config: dict[str, Any], whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, scores and rows are those of one call."""
    changed = elsewhere(config, tmp_path)
    ended: list[str] = []
    stock = Clock.on_step_end

    def on_step_end(self: Clock, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage = Path(args.output_dir).parent.name
        if stage not in ended and state.global_step == 1:
            ended.append(stage)
            self.stop = 0.0  # long ago
        stock(self, args, state, control, **kwargs)

    monkeypatch.setattr(Clock, "on_step_end", on_step_end)
    for stage in STAGES:
        with pytest.raises(SystemExit, match=f"the time of this call is over in {stage}, after 1 steps; the same"):
            chain.run(changed, call=60, resume=stage != "sft")
    report = chain.run(changed, call=60, resume=True)
    assert report["lines"] == whole["lines"]
    assert [(one["what"], one["value"]) for one in report["rows"]] == [
        (one["what"], one["value"]) for one in whole["rows"]
    ]
    for stage in STAGES:
        assert report["stages"][stage]["steps"] == whole["stages"][stage]["steps"]
        right = weights(config, stage)
        assert all(torch.equal(one, right[name]) for name, one in weights(changed, stage).items())


def test_nan_stops_and_the_checkpoints_before_it_stay(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trainer = trainers().sft
    stock = trainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = stock(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    with pytest.raises(FloatingPointError, match=r"the loss of step 5 is nan.*lower learning_rate"):
        train_sft.train(elsewhere(config, tmp_path))
    kept = load_file(tmp_path / "out/sft/run/checkpoint-3/model.safetensors")
    assert all(bool(one.isfinite().all()) for one in kept.values())
    assert not (tmp_path / "out/sft/model").exists()


def test_batches_without_targets_change_nothing(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_targets(documents: Any, length: int) -> list[dict[str, Any]]:
        return [row | {"labels": [IGNORED] * len(row["labels"])} for row in packs_by_length(documents, length)]

    monkeypatch.setattr(train_sft, "packs_by_length", without_targets)
    with caplog.at_level(logging.WARNING, logger="hf_longctx"):
        train_sft.train(elsewhere(config, tmp_path, sft={"steps": 2}))
    assert "step 2 has no target tokens on any process: it is skipped" in caplog.text
    before: Any = load_model(config["model"], dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out/sft/model", dtype=torch.float32)
    for name, one in before.named_parameters():
        assert torch.equal(one, after.get_parameter(name)), name


def test_the_loss_of_preferences_is_that_of_the_paper(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rafailov et al. 2023, equation 7: values and gradients; the reference is the model at the beginning."""
    trainer = trainer_of("dpo", elsewhere(config, tmp_path), monkeypatch)
    start = load_model(config["model"], dtype=torch.float32)
    assert trainer.ref_model is not None
    assert trainer.ref_model is not trainer.model
    for name, one in start.named_parameters():
        assert torch.equal(one, trainer.ref_model.get_parameter(name)), name
    torch.manual_seed(0)
    with torch.no_grad():
        for one in trainer.model.parameters():
            one.add_(0.02 * torch.randn_like(one))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()  # no dropout either way
    found = trainer.compute_loss(trainer.model, dict(batch))
    found.backward()
    gradients = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    slow = load_model(config["model"], dtype=torch.float32)
    slow.load_state_dict(trainer.model.state_dict())
    chances = []
    for model in (slow, start):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        each = logits.gather(2, batch["input_ids"][:, 1:, None])[:, :, 0] * batch["completion_mask"][:, 1:]
        chances.append(each.sum(1))
    ours, theirs = chances[0] - chances[1].detach(), len(batch["input_ids"]) // 2
    beta = trainer.args.beta
    right = -torch.nn.functional.logsigmoid(beta * (ours[:theirs] - ours[theirs:])).mean()
    assert float(found) == pytest.approx(float(right), rel=EXACT)
    right.backward()
    for name, one in slow.named_parameters():
        torch.testing.assert_close(gradients[name], one.grad, rtol=1e-4, atol=EXACT)


def test_preferences_begin_at_none_under_autocast(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: model and reference are rounded alike."""
    stock = train_dpo.arguments
    monkeypatch.setattr(train_dpo, "arguments", lambda *given: stock(*given) | {"bf16": True})
    first, second = train_dpo.train(elsewhere(config, tmp_path) | {"save_dtype": "bfloat16"})["logs"]
    assert first["rewards/margins"] == 0 != second["rewards/margins"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out/dpo/model")
    assert saved.dtype == torch.bfloat16


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_preflight_counts_no_logits_of_trl(
    stage: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trainer_of(stage, elsewhere(config, tmp_path), monkeypatch)._fused_head
    assert not has_fused_head(load_model(config["model"], dtype=torch.float32))


def test_answers_that_did_not_end_have_no_end_in_the_batches(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = elsewhere(config, tmp_path, dpo={"problems": 20, "prompts": 0})
    trainer = trainer_of("dpo", changed, monkeypatch)
    rows = trainer.train_dataset
    end = load_tokenizer(config["model"]).eos_token_id
    assert all(ids[-1] == end for ids in rows["chosen_ids"])
    assert 0 < sum(ids[-1] != end for ids in rows["rejected_ids"]) < 20


def test_its_pairs_are_pairs_of_long_dpo(config: dict[str, Any], whole: dict[str, Any]) -> None:
    """The recipe for several cards reads what this one has made, and its trainer is the one that trained on it."""
    pairs = read_pairs(Path(config["out"]) / "dpo/pairs.jsonl")
    assert len(pairs) == whole["stages"]["dpo"]["data"]["kept"]
    tokenizer = load_tokenizer(config["model"])
    assert fitting(pairs, tokenizer, {"longest": config["context"], "model": "m"}, 2 * config["context"]) == pairs
    assert train_dpo.dpo_trainer is dpo_trainer
