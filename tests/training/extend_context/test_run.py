"""recipes/extend_context runs on a CPU with a tiny model, and goes on after an interruption as if there was none."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from recipes.clock import Clock
from recipes.extend_context import compare, curriculum, train
from recipes.extend_context.corpus import prepare as prepared_corpus
from recipes.extend_context.model import load_extended
from recipes.extend_context.rehearsal import rehearsal_of
from recipes.extend_context.settings import checked
from recipes.extend_context.smoke import FAR, NEAR, check, prepare
from recipes.extend_context.stock import Stock
from recipes.extend_context.trainer import ExtendTrainer
from recipes.extend_context.windows import Windows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    config = prepare(tmp_path_factory.mktemp("whole"))
    return config, train.run(config)


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(config["out"]) / "model/model.safetensors")


def test_smoke(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config, report = whole
    out = Path(config["out"])
    check(report, out)
    text = (out / "model/README.md").read_text(encoding="utf-8")
    for told in (f"{FAR} over stock at {NEAR}", "| passkey | 512 |", "nats against stock"):
        assert told in text
    expected = json.loads((out / "expected.json").read_text(encoding="utf-8"))
    assert expected[f"perplexity, {FAR} over stock at {NEAR}"]["tolerance"] >= 0.01
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["after"]["not measured"] == []


def test_a_run_beside_its_control(whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    report = Path(whole[0]["out"]) / "report.json"
    control = json.loads(report.read_text(encoding="utf-8"))
    control["scaled"] = {"yarn": control["after"], "dynamic": control["after"]}
    (tmp_path / "control.json").write_text(json.dumps(control), encoding="utf-8")
    out, words = tmp_path / "bars.json", [str(report), str(tmp_path / "control.json"), "--ablation", str(report)]
    compare.main([*words, "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["what"]: row for row in found["rows"]}
    assert found["versions"] == control["versions"]
    assert rows[f"perplexity, {FAR} tokens over the control with scaled positions, the best (yarn)"]["value"] == 1
    assert all(rows[f"perplexity, {n} tokens over the control's"]["value"] == 1 for n in (64, NEAR))
    mean = rows[f"perplexity, {FAR} tokens over the best reader of {NEAR} (control), mean"]
    assert mean["value"] == pytest.approx(whole[1]["ratios"][f"{FAR} over itself at {NEAR}"]["mean"])
    cells = whole[1]["after"]["passkey"][str(FAR)]
    assert rows[f"passkey, {FAR} tokens: found"]["value"] == 100 * sum(cells.values()) / (2 * len(cells))
    assert all(row["why"] for row in found["rows"] if row["holds"] is False)


def test_what_is_saved_is_a_stock_model(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config, _ = whole
    model: Any = AutoModelForCausalLM.from_pretrained(Path(config["out"]) / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.use_cache
    dim = model.config.head_dim
    inv_freq = 1 / 40_000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq.double(), inv_freq, rtol=1e-6, atol=0)
    assert "hf_longctx" not in (Path(config["out"]) / "model/config.json").read_text(encoding="utf-8")


class Interrupted(Exception):
    """Stands for a kill."""


def stopped(config: dict[str, Any], error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> str:
    """Begin a training that an error ends after six steps; what it said."""
    stock = Clock.on_step_end

    def on_step_end(self: Clock, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise error
        stock(self, args, state, control, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(Clock, "on_step_end", on_step_end)
        with pytest.raises((SystemExit, Interrupted)) as said:
            train.run(config)
    return str(said.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_resumed_is_bit_equal(
    error: type[BaseException],
    whole: tuple[dict[str, Any], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = prepare(tmp_path)
    said = stopped(config, error, monkeypatch)
    if error is KeyboardInterrupt:
        assert "after 6 steps; --resume goes on" in said
    assert not (tmp_path / "out/model").exists()
    with pytest.raises(ValueError, match="Go on with --resume"):
        train.run(config)
    report = train.run(config, resume=True)
    for name, one in weights(whole[0]).items():
        assert torch.equal(one, weights(config)[name]), name
    assert report["losses"] == whole[1]["losses"]


TOGETHER = {
    "train": ["q_proj", "k_proj"],
    "pose": {"kinds": ["retrieval", "short"], "chunks": 3},
    "distil": {"weight": 2.0, "length": NEAR},
    "retrieval": {"lengths": [256, FAR], "facts": 2, "weight": 8, "near": 0.5, "apart": 0.5, "varied": True},
    "mix": {"long": 0.4, "short": 0.2, "retrieval": 0.2, "rehearsal": 0.2},
    "rehearsal": {"tokens": 300, "length": 64, "start": 4, "weight": 3.0},
}


def test_resumed_is_bit_equal_with_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (checked(prepare(tmp_path / name) | TOGETHER) for name in ("one", "other"))
    whole = train.run(one)
    stopped(other, Interrupted, monkeypatch)
    assert train.run(other, resume=True)["losses"] == whole["losses"]
    changed = 0
    stock, _ = load_extended(one)
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name
        moved = not torch.equal(weight, stock.get_parameter(name))
        assert moved is name.endswith(("q_proj.weight", "k_proj.weight")), name
        changed += moved
    assert changed == 4


def test_a_resumed_run_refuses_other_settings_and_data(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config = whole[0]
    other = {"mix": {"long": 1.0}, "training": config["training"] | {"learning_rate": 1.0}}
    with pytest.raises(ValueError, match="--resume: mix, training changed since the training"):
        train.run(config | other, resume=True)
    file = Path(config["documents"]) / "long.txt"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + " And more.", encoding="utf-8")
    try:
        with pytest.raises(ValueError, match="--resume: data changed"):
            train.run(config, resume=True)
    finally:
        file.write_text(text, encoding="utf-8")


def test_nan_stops_before_the_weights_are_spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path)
    stock = ExtendTrainer.compute_loss

    def compute_loss(self: ExtendTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = stock(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 5 else loss

    monkeypatch.setattr(ExtendTrainer, "compute_loss", compute_loss)
    with pytest.raises(FloatingPointError, match=r"the loss of step 6 is nan.*lower learning_rate"):
        train.run(config)
    kept = load_file(tmp_path / "out/run/checkpoint-4/model.safetensors")
    assert all(bool(one.isfinite().all()) for one in kept.values())


def test_time_ends_the_training_and_its_schedule(tmp_path: Path) -> None:
    clock = Clock(100, 50.0, tmp_path / "seconds.json")
    clock._begun -= 25
    assert clock.share(10) == pytest.approx(0.5, abs=0.01)
    assert clock.share(80) == 0.8
    clock._begun -= 30
    assert clock.share(10) == 1.0
    with pytest.raises(ValueError, match="left no time to train"):
        train.run(prepare(tmp_path), minutes=0.01)


@pytest.mark.parametrize("variant", [{"lora": 4}, {"positions": {"type": "yarn", "factor": 4}}])
def test_adapters_and_scalings_are_saved_as_a_stock_model(variant: dict[str, Any], tmp_path: Path) -> None:
    config = prepare(tmp_path) | variant
    config["tokens"] = 4 * config["tokens_per_step"]
    train.run(config)
    saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    stock: Any = AutoModelForCausalLM.from_pretrained(config["model"])
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    for name, one in stock.named_parameters():
        assert not torch.equal(one, saved.get_parameter(name)), f"{name} was not trained"
    if "positions" in variant:
        assert saved.config.rope_parameters["rope_type"] == "yarn"
        assert saved.config.max_position_embeddings == FAR
        assert saved.config.rope_parameters["original_max_position_embeddings"] == NEAR


def test_adapters_of_some_modules(tmp_path: Path) -> None:
    config = checked(prepare(tmp_path) | {"lora": 4, "train": ["q_proj", "k_proj"]})
    config["tokens"] = 2 * config["tokens_per_step"]
    train.run(config)
    saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    stock: Any = AutoModelForCausalLM.from_pretrained(config["model"])
    for name, one in stock.named_parameters():
        moved = not torch.equal(one, saved.get_parameter(name))
        assert moved is name.endswith(("q_proj.weight", "k_proj.weight")), name


def test_a_finished_training_is_evaluated_again(whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before = weights(whole[0])
    report = train.run(whole[0], resume=True)
    assert report["steps"] == whole[1]["steps"]
    assert all(torch.equal(one, before[name]) for name, one in weights(whole[0]).items())
    assert report["after"] == whole[1]["after"]


def test_a_full_disk_is_said_and_loses_nothing(
    whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare(tmp_path)

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(importlib.import_module("hf_longctx.hub.save"), "finish", no_room)
        with pytest.raises(OSError, match="the checkpoint could not be written"):
            train.run(config)
    assert not (tmp_path / "out/model").exists()
    train.run(config, resume=True)
    assert all(torch.equal(one, weights(config)[name]) for name, one in weights(whole[0]).items())


def test_the_control_is_measured_with_other_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = prepare(tmp_path)
    control = {"positions": {"type": "stock"}, "mix": {"short": 1.0}, "short": [NEAR], "length": NEAR}
    scaled = {"base": config["positions"], "dynamic": {"type": "dynamic", "factor": 4}}
    config |= control | {"tokens": 2 * config["tokens_per_step"], "out": str(tmp_path / "control")}
    config["evaluation"] |= {"scaled": scaled}
    report = train.run(config)
    assert [*report["after"]["curves"]["novel"]["nll"]] == ["64", str(NEAR)]
    assert [*report["scaled"]["dynamic"]["curves"]["novel"]["nll"]] == [str(FAR)]
    file = str(tmp_path / "control/report.json")
    compare.main([file, file])
    found = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(["{", ""]))
    assert found[f"{NEAR} over control at {NEAR}"]["mean"] == 1.0
    assert f"{NEAR} over control with positions base at {FAR}" in found


def test_a_kill_in_the_evaluation_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path)
    config["tokens"] = 2 * config["tokens_per_step"]

    def killed(*args: Any) -> None:
        raise Interrupted

    monkeypatch.setattr("recipes.extend_context.needles.found", killed)
    with pytest.raises(Interrupted):
        train.run(config)
    kept = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert len(kept["losses"]) == kept["steps"] == 2
    assert set(kept["after"]["curves"]) == set(config["held_back"])
    assert str(FAR) in kept["after"]["passkey"]
    assert f"{FAR} over stock at {NEAR}" in kept["ratios"]
    assert kept["versions"]
    assert f"passkey, {FAR} tokens" in json.loads((tmp_path / "out/expected.json").read_text(encoding="utf-8"))


def test_autocast_as_on_a_gpu(
    whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare(tmp_path) | {"memory": {"tile": 128, "remat": "attention"}}
    stock = train.TrainingArguments
    monkeypatch.setattr(train, "TrainingArguments", lambda **given: stock(**given | {"bf16": True}))
    report = train.run(config)
    assert report["losses"] != whole[1]["losses"]
    assert report["losses"] == pytest.approx(whole[1]["losses"], rel=0.02)


def test_autocast_as_on_a_gpu_with_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for bf16 in (False, True):
        config = checked(prepare(tmp_path / str(bf16)) | TOGETHER | {"memory": {"tile": None, "remat": "attention"}})
        config["tokens"] = 4 * config["tokens_per_step"]
        model, tokenizer = load_extended(config)
        training = prepared_corpus(config, tokenizer).training
        windows = Windows(training, tokenizer, config)
        windows.own = rehearsal_of(config, training, tmp_path / str(bf16), Stock(config))
        stock = TrainingArguments
        monkeypatch.setattr(train, "TrainingArguments", lambda **given: stock(**given | {"bf16": bf16}))  # noqa: B023
        found.append(train.trained(model, tokenizer, windows, config, None, False, Stock(config))["losses"])
    assert found[0] != found[1]
    # a step of windows that are distilled alone begins at a divergence of 0
    assert found[1] == pytest.approx(found[0], rel=0.02, abs=1e-5)


@pytest.mark.parametrize("given", ["-1", "0", "nan", "inf", "soon"])
@pytest.mark.parametrize("command", [train.main, curriculum.main])
def test_no_time_at_all(command: Any, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command([f"--minutes={given}"])
    assert "argument --minutes: " in capsys.readouterr().err
