"""`python -m tests.composition` writes docs/composition.md."""

from tests.composition.table import DOCUMENT, document

DOCUMENT.write_text(document(), encoding="utf-8")
