"""The benchmark of sequence parallelism, with tiny models in two processes: what it compares computes the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longctx.parallel import Layout
from recipes.benchmarks.sequence_parallel import __main__ as command
from recipes.benchmarks.sequence_parallel import figure, launching, steps, training
from recipes.benchmarks.sequence_parallel.launching import Launcher
from recipes.benchmarks.sequence_parallel.lines import LINES, ONE, RIVAL
from recipes.benchmarks.sequence_parallel.packs import GlobalZigzag, pack
from recipes.benchmarks.sequence_parallel.texts import RANDOM, packs
from recipes.benchmarks.sequence_parallel.train import over, rated

from .benchmarked import ready, reordered, samples
from .pool import Pool

EXACT = 1e-5
LLAMA = "Llama 1.24B"


@pytest.fixture(scope="module")
def cards(two: Pool) -> Pool:
    """Two ranks that have imported the benchmark."""
    two.run(ready)
    return two


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_global_zigzag_holds_every_token_once_and_cuts_the_pack_as_one_document(ranks: int) -> None:
    lengths = [5, 0, 1, 40, 17, 3]
    layout, one = GlobalZigzag.of(lengths, ranks), Layout.of([sum(lengths)], ranks, "all")
    assert torch.cat(layout.places).sort().values.tolist() == list(range(66))
    for rank in range(ranks):
        assert layout.places[rank].tolist() == one.places[rank].tolist()


def test_packs_are_those_of_their_seed() -> None:
    assert pack(1000, 3, 4.0) == pack(1000, 3, 4.0) != pack(1000, 4, 4.0)
    assert sum(pack(1000, 3, 4.0)) == 1000
    made = packs(torch.arange(3, 300), 128, 3, 3.0)
    assert [one["input_ids"].shape for one in made] == [(1, 128)] * 3
    assert made[2]["input_ids"].flatten().tolist() == [i % 297 + 3 for i in range(256, 384)]
    assert all((one["labels"] == -100).equal(one["position_ids"] == 0) for one in made)


@pytest.mark.parametrize("line", [name for name, line in LINES.items() if line.processes == 2 and name != RIVAL])
def test_every_line_takes_the_steps_of_stock(cards: Pool, line: str) -> None:
    packs = {"document": [97], "pack": [5, 40, 30, 22]}
    given = {"geometry": "SmolLM2-135M", "lines": [ONE, line], "packs": packs}
    for found in cards.run(samples, "train", given):
        assert [(one["line"], one["pack"]) for one in found] == [(name, pack) for name in (ONE, line) for pack in packs]
        for stock, ours in zip(found[:2], found[2:], strict=True):
            # the second pack is seen by a model that the first has trained
            assert ours["loss"] == pytest.approx(stock["loss"], rel=EXACT)
            assert min(ours["seconds"]) > 0


def test_a_line_that_cannot_run_says_why_and_the_others_go_on(cards: Pool) -> None:
    given = {"geometry": LLAMA, "lines": ["no such line", "auto, DDP"], "packs": {"a": [30]}}
    refused, served = cards.run(samples, "train", given)[0]
    assert "failed" in refused
    assert "seconds" in served
    at = {RIVAL: rated(refused), "auto, DDP": rated(served)}
    assert over(at, "auto, DDP", RIVAL) == (None, refused["failed"])
    assert over(at, "auto, DDP", "auto, DDP") == (1, None)


def test_attention_of_packs_is_that_of_one_card_in_every_layout(cards: Pool) -> None:
    for sample in cards.run(samples, "packed_attention", {})[0]:
        assert max(sample["off"].values()) < EXACT
        assert set(sample["ms"]) == {"one card", "balance", "cut all", "global zigzag"}


def test_log_probabilities_of_a_pack_are_those_of_its_documents(cards: Pool) -> None:
    (sample,) = cards.run(samples, "packed_exact", {"geometry": LLAMA, "rival": False})[0]
    assert len(sample["off"]) == 4
    assert max(sample["off"].values()) < EXACT


def test_the_other_parts_measure(cards: Pool) -> None:
    (sample,) = cards.run(samples, "ulysses", {"tokens": [97]})[0]
    assert max(sample["off"].values()) < EXACT
    layer, step = cards.run(samples, "host", {})[0]
    assert {"sdpa", layer["auto"]} < set(layer["layer"])
    assert min(step["step"].values()) > 0


def test_training_on_two_cards_has_the_losses_of_one(cards: Pool, tmp_path: Path) -> None:
    batches = tmp_path / "batches.pt"
    torch.save(packs(torch.arange(3, 300), 64, 4, 3.0), batches)
    given = {"model": RANDOM, "lines": [training.STOCK, steps.TWO], "batches": str(batches)}
    stock, shared = cards.run(samples, "training", given)[0]
    assert shared["losses"] == pytest.approx(stock["losses"], rel=EXACT)
    assert len(set(stock["losses"])) == 4


def test_accelerates_parts_are_put_in_order(cards: Pool) -> None:
    assert cards.run(reordered) == [True, True]


def test_the_command_starts_processes_and_writes_a_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command.main(["--tiny", "--parts", "kept", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "sequence_parallel_kept.json").read_text(encoding="utf-8"))
    (one,) = result["rows"]
    assert one["value"] > 0, capfd.readouterr()
    assert result["hardware"]
    assert result["versions"]["torch"] == torch.__version__


def test_when_the_time_is_over_nothing_is_started() -> None:
    assert list(Launcher(True, 0).samples("train", 2)) == [{"failed": "not measured: the time was over"}]


def test_the_picture_shows_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    losses = {training.OURS: [3.0, 2.0], training.STOCK: [3.1, 2.0], steps.TWO: [3.0, 2.2]}
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"hardware": "none", "rows": [{"detail": {"losses": losses}}]}), encoding="utf-8")
    above, below = figure.figure(path).axes
    assert [list(line.get_ydata()) for line in above.get_lines()] == [losses[name] for name in figure.STYLES]
    assert [list(line.get_ydata()) for line in below.get_lines()] == [pytest.approx([0.1, 0]), pytest.approx([0, 0.2])]


def test_single_processes_run_at_once_each_on_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(part: str, processes: int, card: str | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
        assert (part, processes) == ("training", 1)
        yield {"card": card, **settings}

    none: list[str | None] = 3 * [None]
    for tiny, cards, expected in ((False, ["3", "4"], ["3", "4", "3"]), (False, [], none), (True, ["3"], none)):
        launcher = Launcher(tiny)
        monkeypatch.setattr(launching, "visible", lambda cards=cards: cards)
        monkeypatch.setattr(launcher, "samples", one)
        found = launcher.side_by_side("training", [{"line": n} for n in range(3)])
        assert found == [{"card": card, "line": n} for n, card in enumerate(expected)]
