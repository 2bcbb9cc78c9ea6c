"""Running prose out of the files of packages: paragraphs of HTML, SWORD's commentaries, texts among R's data."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from hf_longctx.text.repeats import drop_repeated

LISTS = frozenset(["dl", "ol", "table", "ul"])  # their parts say little without the terms and rows that they explain
HEADINGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6"])
BLOCKS = LISTS | HEADINGS | {"blockquote", "dd", "div", "dt", "li", "pre", "script", "style", "td", "th", "tr"}
# what ends in a colon introduces a listing or a table, which is left out as well
_ENDED = re.compile(r"""[.!?]["')\]”’]*$""")
_CHARSXP, _STRSXP = 9, 16  # R's types of a string and of a vector of strings


class _Paragraphs(HTMLParser):
    """The text of each `<p>`, and of each `<div class="para">`, as Publican writes them, that is not in a list.

    A block inside a paragraph ends it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] | None = None
        self._lists = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or tag in BLOCKS:
            self._end()
        self._lists += tag in LISTS
        if (tag == "p" or (tag == "div" and dict(attrs).get("class") == "para")) and not self._lists:
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" or tag in BLOCKS:
            self._end()
        self._lists -= tag in LISTS and self._lists > 0

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open.append(data)

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        text = " ".join("".join(self._open or ()).split())
        if _ENDED.search(text):
            self.found.append(text)
        self._open = None


def paragraphs_of_html(text: str) -> list[str]:
    """The paragraphs of a page that end as a sentence does: no menus, headings, lists, tables and listings."""
    page = _Paragraphs()
    page.feed(text)
    page.close()
    return page.found


def html_prose(*patterns: str) -> Callable[[Path], str]:
    """A reader of the pages of a folder whose paths match one of the patterns, each paragraph once."""

    def read(folder: Path) -> str:
        # packages link to the same page from several folders
        pages = sorted({page.resolve() for pattern in patterns for page in folder.glob(pattern) if page.is_file()})
        texts = (page.read_text(encoding="utf-8", errors="replace") for page in pages)
        return _once("\n\n".join(paragraph for text in texts for paragraph in paragraphs_of_html(text)))

    return read


def sword(folder: Path) -> str:
    """SWORD's compressed commentary in OSIS markup, the Old Testament first, each paragraph once."""
    blocks = (block for file in sorted(folder.rglob("?t.?zz"), reverse=True) for block in _sword_blocks(file))
    text = b"\n\n".join(blocks).decode("utf-8", "replace")
    text = re.sub(r"(?s)<(title|table|note)\b[^>]*(?<!/)>.*?</\1>", "\n\n", text)
    text = re.sub(r"<[^>]+>", "", re.sub(r"</?(?:div|chapter|item|l|lb|lg|p|verse)\b[^>]*>", "\n\n", text))
    return _once(re.sub(r"\s*\n\s*\n\s*", "\n\n", html.unescape(text)))


def _sword_blocks(file: Path) -> Iterator[bytes]:
    """Beside `ot.bzz` lies `ot.bzs`, its index: offset, size and size in full of each block, 32 bits each."""
    data, index = file.read_bytes(), file.with_suffix(f"{file.suffix[:-1]}s").read_bytes()
    for start, size, _ in struct.iter_unpack("<III", index):
        if size:
            yield zlib.decompress(data[start : start + size])


def r_texts(folder: Path) -> str:
    """Every vector of strings in a lazy-load database of R, a line each."""
    data, texts = next(folder.rglob("Rdata.rdb")).read_bytes(), []
    while data:
        # the size in full, then a stream of zlib
        stream = zlib.decompressobj()
        texts.append("\n".join(r_strings(stream.decompress(data[4:]))))
        data = stream.unused_data
    return "\n\n".join(texts)


def r_strings(data: bytes) -> list[str]:
    """The strings of a vector that R serialised as XDR, version 2 or 3; a missing one is empty.

    Raises:
        ValueError: It is something else.
    """

    def number(at: int) -> int:
        return int(struct.unpack_from(">i", data, at)[0])

    at = 14
    if data[:2] == b"X\n" and number(2) == 3:
        at += 4 + number(at)
    if data[:2] != b"X\n" or number(at) & 0xFF != _STRSXP:
        raise ValueError(f"R data that begins with {data[:24]!r}: expected a serialised vector of strings.")
    count, found, at = number(at + 4), list[str](), at + 8
    for _ in range(count):
        kind, size = number(at) & 0xFF, max(number(at + 4), 0)
        if kind != _CHARSXP:
            raise ValueError(f"R data: string {len(found)} has type {kind}: expected {_CHARSXP}.")
        found.append(data[at + 8 : at + 8 + size].decode("utf-8", "replace"))
        at += 8 + size
    return found


def _once(text: str) -> str:
    return drop_repeated([text])[0][0]
