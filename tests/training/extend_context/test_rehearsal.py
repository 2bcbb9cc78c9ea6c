"""recipes/extend_context: texts that the stock model writes itself, and what is trained on them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_longctx.hub import load
from recipes.extend_context import train
from recipes.extend_context.corpus import Corpus
from recipes.extend_context.model import load_extended
from recipes.extend_context.rehearsal import FILE, rehearsal_of, written
from recipes.extend_context.settings import checked
from recipes.extend_context.stock import Stock
from recipes.extend_context.windows import Windows

OWN: dict[str, Any] = {"tokens": 300, "length": 64, "start": 4, "weight": 3.0}
CHANGE: dict[str, Any] = {"rehearsal": OWN, "mix": {"rehearsal": 1.0}, "positions": {"type": "stock"}}


@pytest.fixture
def rehearsing(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return checked(config | CHANGE | {"out": str(tmp_path / "out"), "tokens": config["tokens_per_step"]})


class Follower:
    """Writes the number after the last one, and ends after 20."""

    device = torch.device("cpu")

    def generate(self, prompts: torch.Tensor, **how: Any) -> torch.Tensor:
        assert how["do_sample"]
        assert (how["temperature"], how["top_k"], how["top_p"]) == (1.0, 0, 1.0), "of its own distribution"
        torch.rand(5)
        rows = [[*row, *range(row[-1] + 1, 21), 0] for row in prompts.tolist()]
        most = max(map(len, rows))
        return torch.tensor([row + [0] * (most - len(row)) for row in rows])


def test_texts_begin_in_the_documents_and_follow_each_other_with_their_ends() -> None:
    tokenizer: Any = type("", (), {"eos_token_id": 0})
    documents = {"a": torch.arange(1, 11, dtype=torch.int32), "too short": torch.tensor([7], dtype=torch.int32)}
    settings = {"tokens": 100, "length": 16, "start": 3, "weight": 1.0}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rows = written(Follower(), tokenizer, documents, settings, 0)
    assert torch.equal(torch.get_rng_state(), before), "others draw the same numbers"
    assert rows.shape[1] == 17
    assert len(rows) >= 100 // 16
    assert torch.equal(rows[1:, 0], rows[:-1, -1]), "the last target of a row is the first token of the next"
    stream = [*rows[:, :-1].flatten().tolist(), int(rows[-1, -1])]
    texts = " ".join(map(str, stream)).split(" 0 ")
    for text in texts[:-1]:
        numbers = [int(x) for x in text.split()]
        assert numbers == list(range(numbers[0], 21))
        assert 1 <= numbers[0] <= 8
    assert torch.equal(rows, written(Follower(), tokenizer, documents, settings, 0))
    assert not torch.equal(rows[:3], written(Follower(), tokenizer, documents, settings, 1)[:3])


def test_they_are_kept_for_a_run_that_is_resumed(
    rehearsing: dict[str, Any], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(rehearsing["out"])
    rows = rehearsal_of(rehearsing, corpus.training, out, Stock(rehearsing))
    assert rows is not None
    assert (out / FILE).exists()
    monkeypatch.setattr("recipes.extend_context.stock.load", None)
    again = rehearsal_of(rehearsing, corpus.training, out, Stock(rehearsing))
    assert again is not None
    assert [row.ids for row in again] == [row.ids for row in rows]
    assert {weight for row in again for weight in row.weights} == {3.0}
    assert rehearsal_of(rehearsing | {"rehearsal": None}, corpus.training, out, Stock(rehearsing)) is None


def test_a_model_that_has_changed_nothing_learns_nothing(
    rehearsing: dict[str, Any], tokenizer: Any, corpus: Corpus
) -> None:
    """The loss is the divergence from the stock model; of another one it is not 0."""
    windows = Windows(corpus.training, tokenizer, rehearsing)
    windows.own = rehearsal_of(rehearsing, corpus.training, Path(rehearsing["out"]), Stock(rehearsing))
    assert windows.own is not None
    batch = windows[0]
    assert batch["distilled"]
    assert set(batch["loss_weights"].flatten().tolist()) == {3.0}
    assert all(row in [own.ids[:-1] for own in windows.own] for row in batch["input_ids"].tolist())
    model, _ = load_extended(rehearsing)
    (loss,) = train.trained(model, tokenizer, windows, rehearsing, None, False, Stock(rehearsing))["losses"]
    assert abs(loss) < 1e-5
    other = AutoModelForCausalLM.from_config(model.config)
    (loss,) = train.trained(other, tokenizer, windows, rehearsing, None, False, Stock(rehearsing))["losses"]
    assert loss > 0.01


@pytest.mark.parametrize("towards", ["distribution", "tokens"])
def test_a_run_loads_the_stock_model_once_and_keeps_it_no_longer_than_it_teaches(
    towards: str, rehearsing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checked(rehearsing | {"rehearsal": OWN | {"towards": towards}})
    loaded, alive = list[Any](), list[int]()

    def noted(*args: Any, **given: Any) -> tuple[Any, Any]:
        model, tokenizer = load(*args, **given)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    def living() -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))

    class Watched(train.ExtendTrainer):
        def train(self, *args: Any, **given: Any) -> Any:
            living()
            return super().train(*args, **given)

    def measured(*args: Any, **given: Any) -> tuple[Any, Any]:
        living()
        return load(*args, **given)

    monkeypatch.setattr("recipes.extend_context.stock.load", noted)
    monkeypatch.setattr(train, "ExtendTrainer", Watched)
    monkeypatch.setattr(train, "load", measured)
    once = train.run(config)
    assert len(loaded) == 1
    assert alive == [int(towards == "distribution"), 0], "while it trains, and when the saved model is measured"
    monkeypatch.setattr(Stock, "loaded", lambda self: noted(config["model"], dtype=config["save_dtype"]))
    each = train.run(config | {"out": str(tmp_path / "each")})
    assert len(loaded) == 1 + 2 + (towards == "distribution"), "a model of its own for every use"
    assert [once[key] for key in ("before", "losses", "after")] == [each[key] for key in ("before", "losses", "after")]
