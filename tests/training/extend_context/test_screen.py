"""recipes/extend_context/screen.py: settings side by side, and trained weights with a share of the stock ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from recipes.extend_context import screen, train
from recipes.extend_context.measure import SAMPLED, TOLD, loss_on
from recipes.extend_context.model import load_extended
from recipes.extend_context.settings import checked
from recipes.extend_context.smoke import FAR, NEAR, prepare


def test_settings_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path)
    other = checked(config | {"retrieval": config["retrieval"] | {"facts": 1}})
    monkeypatch.setattr(screen, "read_config", lambda file, variant: other if variant == "one_fact" else config)
    out = tmp_path / "screen.json"
    screen.main(["--variants", "base", "one_fact", "--averaged", "0.5", "--seconds", "60", "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    names = [row["what"].partition(":")[0] for row in rows]
    half = "0.5 of the stock weights"
    assert names == ["base", f"base, {half}", "one_fact", f"one_fact, {half}"]
    assert all(f"perplexity, {FAR} over itself at {NEAR}" in row["beside"] for row in rows)
    assert abs(rows[1]["beside"]["nats on stock's answers"]) < abs(rows[0]["beside"]["nats on stock's answers"])
    assert rows[0]["beside"]["last loss"] != rows[2]["beside"]["last loss"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("screen")] == [out.name], "no models stay"


def test_two_cards_train_two_variants_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path) | {"tokens": 4 * FAR}
    variants = {"some": {"train": ["q_proj"]}, "nothing": {"train": ["nowhere"]}, "slow": {"retrieval": {"facts": 1}}}
    file, out = tmp_path / "config.yaml", tmp_path / "screen.json"
    file.write_text(yaml.safe_dump(config | {"variants": variants}), encoding="utf-8")
    monkeypatch.setattr(screen, "visible", lambda: ["0", "1"])
    words = ["--config", str(file), "--seconds", "60", "--out", str(out)]
    screen.main([*words, "--variants", "base", "some+slow", "slow"])

    def names() -> list[str]:
        found = json.loads(out.read_text(encoding="utf-8"))
        return [row["what"].partition(":")[0] for row in found["rows"]]

    assert names() == ["base", "slow", "some+slow"]
    with pytest.raises(RuntimeError, match="the variants of card 1 ended with an error"):
        screen.main([*words, "--variants", "some", "nothing"])
    assert names() == ["base", "slow", "some+slow", "some"], "rows of an earlier call stay, and those of the other card"
    assert [path.name for path in tmp_path.glob("screen-card*")] == []


def test_positions_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path)
    monkeypatch.setattr(screen, "read_config", lambda file, variant: config)
    out = tmp_path / "screen.json"
    screen.main(["--seconds", "0", "--out", str(out)])
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["beside"]["tokens"] == 0
    model, _ = load_extended(config)
    _, tokenizer = screen.load(config["model"])
    stock, _ = screen.load(config["model"], dtype=torch.float32)
    answers = screen.own_answers(stock, tokenizer, config["evaluation"]["chats"])
    assert answers[TOLD] != answers[SAMPLED]
    assert answers == screen.own_answers(stock, tokenizer, config["evaluation"]["chats"]), "the same samples each time"
    for measure, some in answers.items():
        lost = loss_on(model.eval(), some) - loss_on(stock, some)
        assert row["beside"][measure.replace("loss", "nats")] == pytest.approx(lost, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_saved_weights_have_a_share_of_the_stock_ones(share: float, tmp_path: Path) -> None:
    config = checked(prepare(tmp_path) | {"averaged": share, "tokens": 2 * FAR, "save_dtype": "float32"})
    stock, _ = load_extended(config)
    ends: dict[str, torch.Tensor] = {}
    kept = train.average_

    def average_(model: Any, weights: dict[str, torch.Tensor], by: float) -> None:
        ends.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        kept(model, weights, by)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "average_", average_)
        train.run(config)
    assert bool(ends) == bool(share)
    saved = load_file(Path(config["out"]) / "model/model.safetensors")
    for name, end in ends.items():
        wanted = (1 - share) * end + share * dict(stock.named_parameters())[name].detach()
        torch.testing.assert_close(saved[name], wanted)


def test_averaged_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"averaged: 0.5, lora: 16: expected"):
        checked(prepare(tmp_path) | {"averaged": 0.5, "lora": 16})
