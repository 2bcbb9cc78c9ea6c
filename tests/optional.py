"""The optional packages of pyproject.toml as modules, and a process in which some of them are not installed."""

from __future__ import annotations

import re
import sys

import pytest

from hf_longctx.evaluation.words import word_list
from hf_longctx.upstream.ledger import tomllib
from recipes.benchmarks.tables import ROOT

NOT_USED = {"docs", "dev"}  # extras of those who work on the package
IMPORTED = {"pillow": ["PIL"], "transformers": ["fastapi", "uvicorn", "openai"], "trl": ["trl", "datasets"]}


def optional() -> set[str]:
    """What is imported of all extras, and jieba, which is in none."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = [line for name, some in extras.items() if name not in NOT_USED for line in some]
    names = {re.match(r"[\w-]+", line)[0] for line in lines} - {"hf-longctx"}  # type: ignore[index]
    return {"jieba"} | {module for name in names for module in IMPORTED.get(name, [name.replace("-", "_")])}


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """From now on they cannot be imported, nor anything in them."""
    for name in names:
        loaded = [module for module in sys.modules if module.startswith(f"{name}.")]
        for module in (name, *loaded):
            monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    word_list.cache_clear()
