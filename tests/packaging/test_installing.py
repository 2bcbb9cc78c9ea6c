"""Whoever is told to install something can: the package is in no registry, its extras come from a checkout."""

from __future__ import annotations

import re
import sys

import pytest

from hf_longctx.upstream.installing import UPGRADE, install_extra
from recipes.benchmarks.tables import ROOT

TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "model_cards/*.md", "recipes/**/*.md", "hf_longctx/**/*.py", "recipes/**/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
EXTRAS = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text().partition("dependencies]")[2], re.M))


def test_nothing_says_to_install_the_package_from_a_registry() -> None:
    wrong = re.compile(r"pip3? install[^\n`]*hf[-_]longctx(?! *[`.:])|hf[-_]longctx\[")
    found = [str(path.relative_to(ROOT)) for path in TEXTS if wrong.search(path.read_text(encoding="utf-8"))]
    assert len(TEXTS) > 200
    assert not found, "say `install_extra(name)`, or pip install '.[name]' in a document"


def test_every_extra_that_is_named_is_declared() -> None:
    named = set()
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"install_extra\(['\"]([\w-]+)['\"]\)", text))
        named |= {name for group in re.findall(r"'\.\[([\w,-]+)\]'", text) for name in group.split(",")}
    assert {"gguf", "evaluation", "clip", "lm-eval", "flash-attn"} <= EXTRAS
    assert {"evaluation", "lm-eval", "clip", "gguf"} <= named <= EXTRAS


def test_commands_are_whole() -> None:
    assert install_extra("gguf") == "pip install '.[gguf]' in a checkout of hf_longctx"
    assert UPGRADE.startswith("git pull && pip install . in a checkout")


def test_an_image_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longctx.clip.embed import read_image

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs pillow: pip install '\.\[clip\]' in"):
        read_image("picture.png")
