from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.evaluation.report import plots
from tests.optional import hide

CURVES: dict[str, Any] = {"stock": {512: 20.0, 1024: 18.0, 2048: 900.0, 4096: None}, "method": {512: 20.0, 4096: 17.0}}
GRIDS = {
    "stock": {(n, d): 1.0 if n == 512 else 0.0 for n in (512, 2048) for d in (0.0, 1.0)},
    "method": {(n, 1.0): 0.5 for n in (512, 2048, 4096)},
}


def overlaps(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other, titles, labels and ticks included."""
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(lambda a: hasattr(a, "get_text") and a.get_visible()) if t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    boxes = [(text, box) for text, box in boxes if box.width > 0]
    return [
        (a, b)
        for i, (a, x) in enumerate(boxes)
        for b, y in boxes[i + 1 :]
        if a != b and x.shrunk(0.9, 0.9).overlaps(y.shrunk(0.9, 0.9))
    ]


@pytest.mark.parametrize("kind", ["perplexity", "passkey", "summary"])
def test_figures_are_drawn_and_nothing_overlaps(tmp_path: Path, kind: str) -> None:
    about = {"window": 1024, "title": "What is shown", "subtitle": "tiny model on a CPU, " * 4}
    figure = {
        "perplexity": lambda: plots.curve_figure(CURVES, **about),  # type: ignore[arg-type]  # mixed values
        "passkey": lambda: plots.passkey_figure(GRIDS, **about),  # type: ignore[arg-type]
        "summary": lambda: plots.summary_figure(CURVES, GRIDS, **about),  # type: ignore[arg-type]
    }[kind]()
    assert overlaps(figure) == []
    plots.save(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_a_length_out_of_memory_is_left_out_of_its_line_only() -> None:
    (axes,) = plots.curve_figure(CURVES, window=1024).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["stock"].get_xdata()) == [512, 1024, 2048]
    assert list(lines["method"].get_xdata()) == [512, 4096]
    assert "trained window, 1k" in lines
    assert axes.get_yscale() == "log"


def test_a_cell_that_was_not_measured_is_a_dash() -> None:
    stock, method, _ = plots.passkey_figure(GRIDS).axes
    assert [text.get_text() for text in stock.texts] == ["100", "0", "–", "100", "0", "–"]
    assert [text.get_text() for text in method.texts] == ["–", "–", "–", "50", "50", "50"]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the curves \['stock'\]"):
        plots.curve_figure({"stock": {512: None}})
    with pytest.raises(ValueError, match="none of the grids"):
        plots.passkey_figure({"stock": {}})


def test_colours_of_tables_are_those_of_heat_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As matplotlib has them, and without it, since tables in a terminal need it not."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    theirs = LinearSegmentedColormap.from_list("passkey", plots.GRID_COLOURS)
    shares = [k / n for n in (3, 10, 25, 255, 256, 1000) for k in range(n + 1)]
    wanted = [to_hex(theirs(share)) for share in shares]
    hide(monkeypatch, "matplotlib")
    plots.grid_colour.cache_clear()
    assert [plots.grid_colour(share) for share in shares] == wanted
    assert (plots.grid_colour(-1), plots.grid_colour(2)) == (wanted[0], wanted[-1])


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[evaluation\]'"):
        plots.curve_figure(CURVES)


@pytest.mark.parametrize(
    ("n", "text"), [(512, "512"), (1536, "1.5k"), (8192, "8k"), (131072, "128k"), (1 << 20, "1M"), (20_000_000, "20M")]
)
def test_token_counts_are_short(n: int, text: str) -> None:
    assert plots.tokens(n) == text


def test_a_model_is_drawn_alike_with_and_without_the_stock_model_beside_it() -> None:
    (beside,) = plots.curve_figure({"stock": {512: 9.0, 1024: 8.0}, "this model": {512: 8.0, 1024: 7.0}}).axes
    (alone,) = plots.curve_figure({"this model": {512: 8.0, 1024: 7.0}}).axes
    look = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in (*beside.lines, *alone.lines)]
    assert look[1] == look[2] != look[0]
    assert look[0][1] == "--", "the stock model"
