"""Published models in new processes: a part of the matrix, what the matrix calls wrong, and its committed results."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from hf_longctx.hub import shim
from hf_longctx.upstream.installing import INSTALL
from hf_longctx.upstream.versions import TESTED
from tests.hub.matrix import record
from tests.hub.matrix.judging import MERGED, Judged, judge
from tests.hub.matrix.making import SEGMENTS
from tests.hub.matrix.references import Reference
from tests.hub.matrix.rows import BRANCH, EXTENDED, OURS, SCALED, STOCK, Row, groups, rows
from tests.hub.matrix.running import Published, publish

ROOT = Path(__file__).parents[2]
CHOSEN = [
    Row("native", "absent", None, place="folder"),
    Row("plugin", "absent"),
    Row("dual", "absent", None, place="folder"),
    Row("dual", "absent", None, "pipeline"),
    Row("dual", "absent", None, "config"),
    Row("dual", "absent", True, place="folder"),
    Row("dual", "absent", True, "pipeline"),
    Row("dual", "absent", True, "classification"),
    Row("adapter", "absent", True),
    Row("dual", "installed"),
    Row("plugin", "installed", True),
    Row("dual", "installed", True),
    Row("dual", "installed", True, "base", "folder"),
    Row("dual", "installed", True, "classification"),
    Row("adapter", "installed", True),
    Row("branches", "installed", True, revision=BRANCH),
    Row("native", "imported"),
    Row("plugin", "imported", None, place="folder"),
    Row("plugin-again", "imported"),
    Row("private", "imported"),
    Row("adapter", "imported", None, "peft", "folder"),
    Row("dual-again", "imported", True),
    Row("private", "installed", True, token="wrong"),
]
PROCESSES = groups(CHOSEN, largest=len(CHOSEN))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    with publish(tmp_path_factory.mktemp("published")) as here:
        yield here


@pytest.fixture(scope="module")
def loaded() -> dict[Row, Judged]:
    """The rows that have been loaded: one that is asked for brings those of its process."""
    return {}


@pytest.mark.parametrize("row", [row for group in PROCESSES for row in group], ids=lambda row: row.name)
def test_a_load_in_a_new_process(row: Row, published: Published, loaded: dict[Row, Judged]) -> None:
    if row not in loaded:
        (group,) = [group for group in PROCESSES if row in group]
        loaded.update({judged.row: judged for judged in published.judged(group, together=len(group))})
    assert loaded[row].wrong == []


def test_the_card_says_what_readers_without_hf_longctx_get(published: Published) -> None:
    cards = {name: _card(published, name) for name in ("plugin", "dual", "native")}
    assert "| after `import hf_longctx` | the extended model |\n| else | the stock model |" in cards["plugin"]
    assert (
        f"| trust_remote_code=True, hf_longctx not installed | an ImportError that says: {INSTALL} |" in cards["dual"]
    )
    assert "| else | the stock model |" in cards["dual"]
    assert "import hf_longctx" not in cards["native"]


def _card(published: Published, name: str) -> str:
    return published.hub.repos[f"tester/{name}"].at("main").files["README.md"].data.decode()


def test_the_chosen_loads_are_rows_of_the_matrix_and_have_every_outcome_of_a_model() -> None:
    assert set(CHOSEN) <= set(rows())
    assert {row.expected for row in CHOSEN} >= {STOCK, EXTENDED, SCALED, OURS}


# -- the rule ---------------------------------------------------------------------------------------------------------
def test_trust_in_a_dual_folder_is_never_answered_with_the_stock_model() -> None:
    trusted = [row for row in rows() if row.tier == "dual" and row.trust and row.way not in ("config", "tokenizer")]
    assert len(trusted) > 20
    assert {row.expected for row in trusted if row.token == "good"} == {EXTENDED, OURS}


def test_the_matrix_has_every_combination_of_tier_package_and_trust() -> None:
    for tier in ("native", "plugin", "dual"):
        for package in ("absent", "installed", "imported"):
            for trust in (None, True, False):
                assert Row(tier, package, trust, place="folder") in rows()


@pytest.mark.parametrize("largest", [1, 3, 100])
def test_loads_share_a_process_only_where_none_changes_what_a_later_one_finds(largest: int) -> None:
    shared = groups(rows(), largest)
    assert sorted(row.name for group in shared for row in group) == sorted(row.name for row in rows())
    for group in shared:
        assert len(group) <= largest
        assert len({(row.package, row.token) for row in group}) == 1
        if group[0].package == "installed":
            assert not any(row.imports for row in group[:-1])
        assert [row.our_class for row in group] == sorted(row.our_class for row in group)


# -- what is called wrong ---------------------------------------------------------------------------------------------
def said(value: float) -> Reference:
    return Reference(torch.full((2, 3), value), torch.full((2, 2), -value), [int(value)] * 2, f"w{int(value)}")


KNOWN = {(carries, adapted): said(3.0 + 2 * i + adapted) for i, carries in enumerate((STOCK, EXTENDED, SCALED))
         for adapted in (False, True)}  # fmt: skip
LLAMA, LONGCTX = (
    "transformers.models.llama.modeling_llama.LlamaForCausalLM",
    "hf_longctx.models.LongCtxLlamaForCausalLM",
)


def answer(carries: str = EXTENDED, adapted: bool = False, off: float = 0.0, **changes: Any) -> dict[str, Any]:
    """What a probe prints of a trusted dual-mode model."""
    reference = KNOWN[carries, adapted]
    numbers = base64.b64encode((reference.logits + off).numpy().tobytes()).decode()
    given = {"class": LONGCTX, "numbers": numbers, "tokens": reference.tokens, "chat": reference.chat}
    return {**given, "imported_before": False, "imported": True, "seconds": 1.0, **changes}


DUAL = Row("dual", "installed", True)


def test_the_expected_model_is_right() -> None:
    assert judge(DUAL, answer(), KNOWN).wrong == []


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        (answer(STOCK), ["expected extended, found stock", "generates [3, 3], expected [5, 5]"]),
        (answer(adapted=True, tokens=[5, 5]), ["expected extended, found extended with the adapter"]),
        (answer(off=1e-6), ["expected extended, found none of the models"]),
        (answer(off=float("nan")), ["expected extended, found none of the models"]),
        (answer(numbers=""), ["expected extended, found none of the models"]),
        (answer(tokens=[5, 6]), ["generates [5, 6], expected [5, 5]"]),
        (answer(chat="w9"), ["answers 'w9', expected 'w5'"]),
        (answer(**{"class": LLAMA}), [f"of the class {LLAMA}"]),
        (answer(imported_before=True), ["hf_longctx is imported before"]),
        (answer(imported=False), ["hf_longctx is not imported afterwards"]),
    ],
)
def test_whatever_differs_is_wrong(changed: dict[str, Any], wrong: list[str]) -> None:
    found = judge(DUAL, changed, KNOWN).wrong
    assert found[0] == wrong[0]
    assert set(wrong) <= set(found)


def test_merged_weights_may_differ_by_their_rounding_only() -> None:
    merged = Row("merged", "installed", True)
    assert judge(merged, answer(adapted=True, off=5e-6), KNOWN).wrong == []
    assert judge(merged, answer(adapted=True, off=2e-5), KNOWN).wrong == ["expected extended, found none of the models"]


def test_settings_of_xl3m_that_are_lost_are_wrong() -> None:
    row = Row("xl3m", "installed", True)
    assert judge(row, answer(xl3m={"name": "xl3m", **SEGMENTS, "keep": 0.5}), KNOWN).wrong == []
    assert "has None as settings of XL3M" in judge(row, answer(xl3m=None), KNOWN).wrong[0]


def failed(kind: str, text: str) -> dict[str, Any]:
    return {"error": kind, "text": text, "imported_before": False, "imported": False, "seconds": 1.0}


def test_only_our_one_line_with_the_way_to_install_is_our_line() -> None:
    row = Row("dual", "absent", True)
    line = f"This model reads long texts through hf_longctx. To install it: {INSTALL}. Or load the model without."
    assert judge(row, failed("ImportError", line), KNOWN).wrong == []
    for other in (failed("ValueError", line), failed("ImportError", f"Traceback\n{line}"), failed("ImportError", "")):
        assert judge(row, other, KNOWN).wrong[0].startswith("expected our line, found ")
    assert f"To install it: {INSTALL}. " in shim.text()


# -- the committed results --------------------------------------------------------------------------------------------
def test_the_whole_matrix_was_run_on_the_tested_releases() -> None:
    pinned = re.search(r"^transformers==([0-9.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None
    assert {*TESTED, record.minor(pinned[1])} <= record.files().keys(), "run `make hub-matrix` and commit its files"


@pytest.mark.parametrize("release", record.files())
def test_every_row_of_a_committed_matrix_is_right(release: str) -> None:
    known = record.read(release)
    assert Version(known["versions"]["transformers"]).release[:2] == Version(release).release
    assert known["rows"].keys() == {row.name for row in rows()}, "run `make hub-matrix` and commit its files"
    for row in rows():
        entry = known["rows"][row.name]
        assert entry["found"] == row.expected, row.name
        assert "wrong" not in entry, row.name
        assert entry.get("distance", 0.0) <= (MERGED if row.published == "merged" else 0.0), row.name
