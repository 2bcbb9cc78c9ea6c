"""Recipes that train in one process take one GPU of several, and say which, where Trainer would split each batch."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments

from recipes import cards
from recipes.extend_context import curriculum
from recipes.extend_context import smoke as extend_smoke
from recipes.extend_context import train as extend
from recipes.far import beside
from recipes.long_dpo import smoke as dpo_smoke
from recipes.long_dpo import train as dpo
from recipes.long_writer import smoke as writer_smoke
from recipes.long_writer import train_dpo, train_grpo, train_sft
from recipes.sequence_parallel_sft import smoke as sft_smoke
from recipes.sequence_parallel_sft import train as sft
from tests.children import python_path
from tests.two_gpus import two_gpus

ROOT = Path(__file__).resolve().parents[2]
FAKED = "import runpy; from tests.two_gpus import two_gpus; two_gpus(setattr); "
FAKED += "runpy.run_module('recipes.sequence_parallel_sft.train', run_name='__main__', alter_sys=True)"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA, and the test has two GPUs of its own")


class ReachedError(Exception):
    """What a recipe's Trainer was built with."""


def of_config(smoke: Any, run: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def begin(folder: Path) -> None:
        smoke.prepare(folder)
        run(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))

    return begin


def stock_of(smoke: Any) -> Callable[[Path], Any]:
    def begin(folder: Path) -> None:
        smoke.prepare(folder)
        smoke.train_stock(folder)

    return begin


def line(name: str) -> Callable[[Path], Any]:
    return lambda folder: beside.measure(name, "tiny", 1024, 1)


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "long_dpo": of_config(dpo_smoke, dpo.run),
    "long_dpo, stock": stock_of(dpo_smoke),
    "sequence_parallel_sft": of_config(sft_smoke, sft.run),
    "sequence_parallel_sft, stock": stock_of(sft_smoke),
    "extend_context": lambda folder: extend.run(extend_smoke.prepare(folder)),
    "curriculum": lambda folder: curriculum.main(["--smoke", "--out", str(folder / "found.json")]),
    **{f"far.beside, {name}": line(name) for name in (beside.STOCK, beside.FAST, beside.TRL)},
    **{
        f"long_writer, {name}": lambda folder, train=one.train: train(writer_smoke.prepare(folder))
        for name, one in {"sft": train_sft, "dpo": train_dpo, "grpo": train_grpo}.items()
    },
}
BY_TRL = ("long_dpo", "long_writer", f"far.beside, {beside.TRL}")


@pytest.fixture(autouse=True)
def _said_before() -> None:
    cards.say_one_card.cache_clear()


@pytest.mark.parametrize("name", COMMANDS)
def test_it_trains_on_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if name.startswith(BY_TRL):
        pytest.importorskip("trl")

    def train(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ReachedError(self.args.n_gpu, self.args.train_batch_size, self.args.per_device_train_batch_size)

    two_gpus(monkeypatch.setattr)
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setenv(cards.VISIBLE, "3,5")
    with caplog.at_level(logging.WARNING, "hf_longctx"), pytest.raises(ReachedError) as reached:
        COMMANDS[name](tmp_path)
    gpus, rows, rows_each = reached.value.args
    assert gpus == 1
    assert rows == rows_each
    said = "This one process sees 2 GPUs (CUDA_VISIBLE_DEVICES=3,5) and trains on the first, GPU 3."
    assert caplog.text.count(said) == 1


def test_every_recipe_that_makes_arguments_of_a_trainer_asks_for_one_card() -> None:
    """Also one that is added, and is not in the table of this file."""
    makes = re.compile(r"\b(TrainingArguments|SFTConfig|DPOConfig|GRPOConfig|arguments_of|needed\(\)\.config)\(")
    found = {file: file.read_text(encoding="utf-8") for file in (ROOT / "recipes").rglob("*.py")}
    found = {file: text for file, text in found.items() if makes.search(text)}
    assert len(found) >= len({name.partition(",")[0] for name in COMMANDS})
    assert [file.name for file, text in found.items() if "one_card(" not in text] == []


def test_a_process_trains_as_with_one_gpu(tmp_path: Path) -> None:
    """The whole command, in which transformers counts two: the same losses as where it counts none."""
    reports = []
    for name, words in (("two", ["-c", FAKED]), ("none", ["-m", "recipes.sequence_parallel_sft.train"])):
        folder = tmp_path / name
        folder.mkdir()
        sft_smoke.prepare(folder)
        environment = {**os.environ, "PYTHONPATH": python_path()} | ({cards.VISIBLE: "3,5"} if name == "two" else {})
        command = [sys.executable, *words, "--config", str(folder / "config.yaml")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("trains on the first, GPU 3. accelerate launch --config_file") == (name == "two")
        reports.append(json.loads((folder / "out/report.json").read_text(encoding="utf-8")))
    assert reports[0] == reports[1]
    assert len(reports[0]["losses"]) > 1


def test_arguments_without_gpus_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    assert cards.one_card(args) is args
    assert args.n_gpu == 0
    assert not caplog.records
