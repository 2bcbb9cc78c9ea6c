"""A matplotlib figure as SVG inside a page: one with the page's font and its light and dark colours."""

from __future__ import annotations

import html
import io
import re
from typing import Any

from .plots import LINES

# The colours of figures to the page's variables, which differ between light and dark.
_VARIABLES = {
    "#000000": "currentColor",
    "#e5e7eb": "var(--rule)",
    "#374151": "currentColor",
    "#111827": "currentColor",
    **{style["color"]: f"var(--line-{i}, {style['color']})" for i, style in enumerate(LINES)},
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Any, name: str, alt: str) -> str:
    """The figure as an `<svg>` element: text stays text, ids begin with `name`, nothing is loaded from anywhere."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # In styles only: a label may look like a colour.
    text = re.sub(r'style="[^"]*"', _coloured, text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _coloured(style: re.Match[str]) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), style[0])
