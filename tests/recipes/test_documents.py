"""Prose out of the files of packages (recipes.benchmarks.prose), and texts of several folders (recipes.texts)."""

from __future__ import annotations

import shlex
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import yaml

from recipes import jobs
from recipes.benchmarks import documents
from recipes.benchmarks.prose import html_prose, paragraphs_of_html, r_strings, r_texts, sword
from recipes.texts import read_folder, read_folders

PAGE = """<html><head><title>No. Title.</title><style>p { color: red. }</style></head><body>
<p class="menu"><a href="a">Next</a> | <a href="b">Up</a></p>
<h1>A Heading.</h1>
<p>The <code>first</code> one &amp; its
   second line.</p>
<p>As in this listing:</p><pre>x = 1.</pre>
<p>Cut by <b>a list. <ul><li>One thing.</li></ul> Lost tail.</p>
<dl><dt>term</dt><dd><p>Explains a term that is not here.</p></dd></dl>
<table><tr><td><p>A cell.</p></td></tr></table>
<div class="para">As <em>Publican</em> writes.<div class="note"><div class="para">Inside (a note.)</div></div></div>
<div>Neither. </div>
<p>He said: “Not closed.”
<p>The last, not closed either!
</body></html>"""


def test_paragraphs_of_html() -> None:
    """Those that end as a sentence does, without what is in lists, and whether or not they are closed."""
    assert paragraphs_of_html(PAGE) == [
        "The first one & its second line.",
        "Cut by a list.",
        "As Publican writes.",
        "Inside (a note.)",
        "He said: “Not closed.”",
        "The last, not closed either!",
    ]


def test_pages_of_a_folder(tmp_path: Path) -> None:
    """A page that several names lead to is read once, and so is a paragraph that several pages have."""
    (tmp_path / "doc/en").mkdir(parents=True)
    (tmp_path / "doc/de").mkdir()
    long = "A paragraph that is long enough to be told from others by it."
    (tmp_path / "doc/en/b.html").write_text(f"<p>{long}</p><p>Second page.</p>", encoding="utf-8")
    (tmp_path / "doc/en/a.html").write_text(f"<p>First page.</p><p>{long}</p>", encoding="utf-8")
    (tmp_path / "doc/de/a.html").write_text("<p>Deutsch.</p>", encoding="utf-8")
    (tmp_path / "doc/en/z.html").symlink_to("a.html")
    assert html_prose("**/en/*.html", "**/en/a*")(tmp_path) == f"First page.\n\n{long}\n\nSecond page."


def test_sword(tmp_path: Path) -> None:
    testaments = {
        "nt": ['<chapter osisID="Matt.1"/><title type="x">Chapter 1</title> New <hi type="bold">words</hi>.'],
        "ot": [
            '<div type="x-p"/> He said &quot;so&quot;.<div eID="1"/><table><row><cell>Outline</cell></row></table>',
            'Two.<div sID="2"/> Three,<lb/>and <reference osisRef="Ps.1.1">Ps 1:1</reference>.',
        ],
    }
    for name, blocks in testaments.items():
        data, index = b"", struct.pack("<III", 0, 0, 0)
        for block in blocks:
            packed = zlib.compress(block.encode())
            index += struct.pack("<III", len(data), len(packed), len(block))
            data += packed
        (tmp_path / f"{name}.bzz").write_bytes(data)
        (tmp_path / f"{name}.bzs").write_bytes(index)
    expected = 'He said "so".\n\nTwo.\n\nThree,\n\nand Ps 1:1.\n\nNew words.'
    assert sword(tmp_path).strip() == expected


# c("ab", "", NA, "é") of R 4: serialize(x, NULL, version = 3) and 2
ITEMS = "00000010 00000004 00040009 00000002 6162 00040009 00000000 00000009 ffffffff 00008009 00000002 c3a9"
THIRD = "580a 00000003 00040201 00030500 00000005 5554462d38 " + ITEMS
SECOND = "580a 00000002 00040201 00020300 " + ITEMS


@pytest.mark.parametrize("data", [SECOND, THIRD])
def test_strings_of_r(data: str, tmp_path: Path) -> None:
    raw = bytes.fromhex(data)
    assert r_strings(raw) == ["ab", "", "", "é"]
    chunk = struct.pack(">I", len(raw)) + zlib.compress(raw)
    (tmp_path / "Rdata.rdb").write_bytes(chunk * 2)
    assert r_texts(tmp_path) == "ab\n\n\né\n\nab\n\n\né"


@pytest.mark.parametrize("data", [b"\x1f\x8b" + bytes(40), bytes.fromhex(SECOND.replace("00000010", "0000000e"))])
def test_other_data_of_r_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a serialised vector of strings"):
        r_strings(data)


def test_further_documents_go_to_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    def source(name: str) -> documents.Source:
        return [name], lambda folder: calls.append(name) or {name: f"The text of {name}."}

    monkeypatch.setattr(documents, "SOURCES", [source("moby")])
    monkeypatch.setattr(documents, "MORE", [source("austen")])
    documents.main([str(tmp_path)])
    assert list(read_folder(tmp_path)) == calls == ["moby"]
    documents.main([str(tmp_path), "--more"])
    assert calls == ["moby", "austen"]
    # a recipe that reads the folder reads what it read before
    assert list(read_folder(tmp_path)) == ["moby"]
    assert read_folder(tmp_path / "more") == {"austen": "The text of austen."}


def test_documents_have_names_of_their_own() -> None:
    names = [name for some, _ in (*documents.SOURCES, *documents.MORE) for name in some]
    assert len(set(names)) == len(names) == 17


def test_texts_of_several_folders(tmp_path: Path) -> None:
    first, second, empty = (tmp_path / name for name in ("first", "second", "empty"))
    for folder in (first, second, empty):
        folder.mkdir()
    (first / "one.txt").write_text("One.", encoding="utf-8")
    (second / "two.txt").write_text("Two.", encoding="utf-8")
    assert read_folders([first, second]) == {"one": "One.", "two": "Two."}
    assert read_folders([first, tmp_path / "second/../first"]) == {"one": "One."}
    with pytest.raises(ValueError, match=r"empty: expected a folder of \.txt files"):
        read_folders([first, empty])
    with pytest.raises(ValueError, match=r"documents .*first --more` fetches some"):
        read_folders([first, first / "more"])
    (second / "one.txt").write_text("Another.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"one\.txt: in .*first and in .*second; expected each name once"):
        read_folders([first, second])


@pytest.mark.parametrize(("more", "number"), [(False, 5), (True, 15)])
def test_a_screen_trains_on_further_documents_where_there_are_some(more: bool, number: int, tmp_path: Path) -> None:
    """The shell's own words of the job, with what would be run printed."""
    texts = tmp_path / "my texts"
    (texts / "more" if more else texts).mkdir(parents=True)
    command = yaml.safe_load((Path(jobs.__file__).parent / "jobs.yaml").read_text(encoding="utf-8"))
    words = command["writer_screen_3"]["command"]
    for key, value in {"documents": texts, "out": tmp_path / "writer_screen_3", "model": "m"}.items():
        words = words.replace(f"{{{key}}}", shlex.quote(str(value)))
    echo = 'python() { printf "%s\\n" "$*"; }\n'
    said = subprocess.run(["bash", "-c", echo + words], capture_output=True, text=True, check=True).stdout.splitlines()
    given = f"{texts} {texts}/more" if more else f"{texts}"
    assert f"--documents {texts} --out" in said[0]
    assert f"--documents {given} --out" in said[1]
    assert "--held-back moby_dick,jargon" in said[1]
    assert f"--named 12,000 rows of {number} documents" in said[2]
