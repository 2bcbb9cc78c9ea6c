"""recipes/benchmarks/lookup_kernels.py: its rows, and that it runs and writes them."""

from __future__ import annotations

import json
from pathlib import Path

from hf_longctx.evaluation.results import result_file
from recipes.benchmarks.lookup_kernels import ATTENTION, CHOOSE, LAYER, LENGTHS, SDPA, rows
from recipes.benchmarks.tables import render
from tests.ops.interpreted import needs_triton, run

BLOCK = "<!-- table:lookup_kernels -->\n<!-- /table -->\n"
TOOK = {CHOOSE: 60.0, ATTENTION: 25.0, LAYER: 80.0, SDPA: 400.0}


def test_a_bar_for_each_length_and_why_one_is_missed(tmp_path: Path) -> None:
    short, long = LENGTHS
    assert "*Not measured yet.*" in render(BLOCK, tmp_path)
    found = [*rows(short, TOOK, 16), *rows(long, TOOK, 2)]
    barred = [(one["value"], one["bar"], one["holds"], one["why"]) for one in found if one["bar"]]
    why = "choose takes 60 µs, attention after it 25, SDPA 400"
    assert barred == [(5.0, ">= 4.5", True, None), (5.0, ">= 16", False, why)]
    assert [one["value"] for one in rows(600, TOOK, 1) if one["bar"]] == [], "lengths of a rehearsal have none"
    data = result_file(found, model="random", command="c", device="cpu", heading="measured")
    (tmp_path / "lookup_kernels.json").write_text(json.dumps(data), encoding="utf-8")
    text = render(BLOCK, tmp_path)
    assert "| what | measured | bar |" in text
    assert f"| 131,072 keys: {LAYER} | 80 µs | – |" in text
    assert "| 1,048,576 keys: SDPA over choose and attention | 5 x | >= 16: missed |" in text
    assert f"- 1,048,576 keys: SDPA over choose and attention: {why}" in text


@needs_triton
def test_a_rehearsal_times_every_part_and_writes_a_file(tmp_path: Path) -> None:
    words = ["--tiny", "--out", str(tmp_path), "--commit", "abc"]
    run(f"from recipes.benchmarks.lookup_kernels import main\nmain({words!r})", "1")
    result = json.loads((tmp_path / "lookup_kernels.json").read_text(encoding="utf-8"))
    took = {one["what"].removeprefix("600 keys: "): one["value"] for one in result["rows"]}
    assert result["commit"] == "abc"
    assert took["SDPA over choose and attention"] == took[SDPA] / took[LAYER]
    assert {CHOOSE, ATTENTION} < set(took)
    assert [path.name for path in tmp_path.iterdir()] == ["lookup_kernels.json"]
