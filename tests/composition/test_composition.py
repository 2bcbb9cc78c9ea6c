"""Every cell of `table.py`, for real."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import hf_longctx
from hf_longctx import PositionFree
from tests.composition.table import (
    ATTENTION,
    DOCUMENT,
    MOVING,
    ORDER,
    REASONS,
    STATIC,
    UNDO,
    WORKS,
    Cell,
    cells,
    document,
    method,
)
from tests.contract.registry import close, differs, fingerprint, same
from tests.reference.model import by_brute_force
from tests.rope.cases import scaled_by_hand
from tests.tiny import logits_of, text, tiny

IDS = text(1, 20)


def name_of(cell: Cell) -> str:
    hand, replacing = "by_hand_" * cell.by_hand, "_replacing" * cell.replacing
    return f"{hand}{cell.first}-{cell.then}{replacing}"


def start(cell: Cell) -> Any:
    """The model with what is there first."""
    if cell.by_hand:
        return scaled_by_hand("llama", cell.first)
    model = tiny()
    method(cell.first).apply(model)
    return model


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.outcome != WORKS], ids=name_of)
def test_refused(cell: Cell) -> None:
    model = start(cell)
    there, ours, before = hf_longctx.applied(model), logits_of(model, IDS), fingerprint(model)
    with pytest.raises(ValueError, match=REASONS[cell.outcome]):
        method(cell.then, cell.replacing).apply(model)
    assert fingerprint(model) == before
    assert hf_longctx.applied(model) == there
    same(logits_of(model, IDS), ours)


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.outcome == WORKS], ids=name_of)
def test_works(cell: Cell, tmp_path: Path) -> None:
    model, then = start(cell), method(cell.then, cell.replacing)
    below, before = logits_of(model, IDS), fingerprint(model)
    patch = then.apply(model)
    ours = logits_of(model, IDS)
    in_its_own_place = cell.replacing and cell.then.startswith(
        cell.first
    )  # longrope_static reads longrope's long table
    if cell.then != "position_free" and not in_its_own_place:
        differs(ours, below)
    close(ours, brute_force(cell, model))
    copy.deepcopy(model).save_pretrained(tmp_path)
    same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), IDS), ours, "saved and loaded")
    patch.undo()
    same(logits_of(model, IDS), below, "after undo")
    assert fingerprint(model) == before
    hf_longctx.undo(model)
    stock = scaled_by_hand("llama", cell.first) if cell.by_hand else tiny()
    same(logits_of(model, IDS), logits_of(stock, IDS), "after both undone")


def brute_force(cell: Cell, model: Any) -> Any:
    """The pair's logits from the published formulas, on a model that was never touched by us."""
    names = cell.first, cell.then
    if cell.replacing and cell.by_hand:  # the trained length goes on from what was there
        scaled = tiny(rope_parameters=copy.deepcopy(model.config.rope_parameters))
    else:
        (row,) = [name for name in names if name not in ATTENTION]
        scaled = scaled_by_hand("llama", row)
    (attention,) = [ATTENTION[name] for name in names if name in ATTENTION] or [PositionFree()]
    with by_brute_force(scaled, attention):
        return logits_of(scaled, IDS, use_cache=False)


@pytest.mark.parametrize("order", UNDO)
def test_undo(order: str) -> None:
    for names in (("yarn", "lm_infinite"), ("streaming_llm", "giraffe")):
        model = tiny()
        stock = logits_of(model, IDS)
        older, newer = (method(name).apply(model) for name in names)
        if UNDO[order] == WORKS:
            newer.undo()
            older.undo()
            same(logits_of(model, IDS), stock)
            continue
        ours, before = logits_of(model, IDS), fingerprint(model)
        with pytest.raises(RuntimeError, match=REASONS[ORDER]):
            older.undo()
        assert fingerprint(model) == before
        same(logits_of(model, IDS), ours)


def test_extend_config_agrees() -> None:
    """A config takes the pairs that a model takes, in both orders, and refuses the others."""
    pairs = [(first, then) for first in (*STATIC, *MOVING, *ATTENTION) for then in (*STATIC, *MOVING, *ATTENTION)]
    outcomes = {(c.first, c.then): c.outcome for c in cells() if not c.by_hand and not c.replacing}
    assert outcomes.keys() == set(pairs)
    for pair in pairs:
        config = tiny().config
        before = config.to_dict()
        if outcomes[pair] == WORKS:
            hf_longctx.extend_config(config, *map(method, pair))
        else:
            with pytest.raises(ValueError, match=r"do not stack|changes its frequencies|both control"):
                hf_longctx.extend_config(config, *map(method, pair))
        assert config.to_dict() == before


def test_the_document_is_rendered_from_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run `make tables`"
