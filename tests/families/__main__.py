"""`python -m tests.families` writes docs/families.md."""

from __future__ import annotations

from tests.families.document import DOCUMENT, render

if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
