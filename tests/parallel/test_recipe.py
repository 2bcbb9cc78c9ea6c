"""recipes/sequence_parallel_sft/ as its README says it: its smoke form, an interrupt, and going on with one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.sequence_parallel_sft import packs, smoke, train
from tests.children import python_path

ROOT = Path(__file__).parents[2]
ON_TWO = ("launch", "--config_file", "recipes/accelerate/sequence_parallel_2.yaml")
RECIPE = "recipes.sequence_parallel_sft.train"
EXACT = 1e-4  # some tens of steps, each of which rounds


def launched(*words: str, log: Path, on_cards: bool = False, recipe: str = RECIPE) -> subprocess.Popen[bytes]:
    """`accelerate launch` at the top of the checkout, as a group of processes of its own."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *ON_TWO, "-m", recipe, *words]
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    environment |= {} if on_cards else {"CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.mark.parametrize("on_cards", [False, pytest.param(True, marks=[pytest.mark.gpu, pytest.mark.dist])])
def test_smoke(on_cards: bool, tmp_path: Path) -> None:
    with launched("--smoke", log=tmp_path / "log", on_cards=on_cards) as process:
        process.wait(500)
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert process.returncode == 0, text
    assert "\nas expected\n" in text


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    smoke.prepare(tmp_path)
    found: dict[str, Any] = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    found["training"] |= {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "save_steps": 2, "max_steps": 1000}
    return found


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="stock Trainer of 5.17 cannot load on several CPU processes: it asks torch for cpu:0",
)
def test_what_an_interrupt_leaves_goes_on_with_one_process(config: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C ends all processes; a save that it broke off is left out; the steps after it are those of one training."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = tmp_path / "out/run"
    with launched("--config", str(tmp_path / "config.yaml"), log=tmp_path / "log") as process:
        try:
            for _ in range(5000):
                if process.poll() is not None or (run / "checkpoint-2/trainer_state.json").exists():
                    break
                time.sleep(0.1)
            assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode != 0
    saved = max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
    broken = run / f"checkpoint-{saved + 100}"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    assert not (tmp_path / "out/model").exists()

    config["training"]["max_steps"] = saved + 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    losses = train.run(config, resume=True)["losses"]
    assert len(losses) == saved + 2
    assert losses == pytest.approx(smoke.stock(tmp_path)["losses"], rel=EXACT)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "report.json", "run"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert type(model).__module__.startswith("transformers.")
    assert "hf_longctx" not in (tmp_path / "out/model/config.json").read_text(encoding="utf-8")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/model")) == smoke.WORDS + 2


def test_packs_hold_every_token_once() -> None:
    documents = [[i] * n for i, n in enumerate((5, 30, 1, 8, 12, 3))]
    found = packs.packed(documents, 12)
    assert max(sum(map(len, pack["documents"])) for pack in found) == 12
    assert len(found) == 5, "59 tokens"
    tokens = sorted(token for pack in found for ids in pack["documents"] for token in ids)
    assert tokens == sorted(token for ids in documents for token in ids)
    assert all(len(set(ids)) == 1 for pack in found for ids in pack["documents"])


def test_a_batch_of_packs_is_one_row() -> None:
    batch = packs.PackCollator()([{"documents": [[1, 2, 3], [4]]}, {"documents": [[5, 6]]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100, 6]]


def test_documents_are_read(tmp_path: Path) -> None:
    assert len(packs.read_documents("python-docs")) > 50
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "three"}) + "\n")
    assert packs.read_documents(str(tmp_path)) == ["one", "two"]
    assert packs.read_documents(str(tmp_path / "c.jsonl")) == ["three"]
    with pytest.raises(ValueError, match=r"expected a folder of \.txt files, a \.jsonl, or python-docs"):
        packs.read_documents(str(tmp_path / "none"))


def test_what_the_recipe_refuses(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="degrees: not settings of this recipe"):
        train.run(config | {"degrees": 2})
    with pytest.raises(ValueError, match="the config lacks pack"):
        train.run({name: value for name, value in config.items() if name != "pack"})
    with pytest.raises(ValueError, match="held_out: 4 of 4 packs"):
        train.run(config | {"held_out": 4})
    with pytest.raises(ValueError, match="degree=2: 1 processes cannot be split"):
        train.run(config | {"degree": 2})
    (tmp_path / "out/run/checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds a training\. Go on with --resume"):
        train.run(config)


def test_the_config_is_for_a_card_too() -> None:
    config = yaml.safe_load((ROOT / "recipes/sequence_parallel_sft/config.yaml").read_text(encoding="utf-8"))
    assert config.keys() == {*train.TYPES, "degree"}
    args = train.training_arguments(config, Path("out"))
    assert args.bf16 == torch.cuda.is_available()
    assert args.learning_rate == 1e-5
