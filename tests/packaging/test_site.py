"""The site of `make site`: what its `conf.py` adds to Sphinx. CI builds it, where a warning is an error."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest

import hf_longctx
from hf_longctx import LMInfinite

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/site/conf.py"))


def test_every_public_name_has_one_page(conf: dict[str, Any]) -> None:
    found = conf["public_names"]()
    assert set(found["hf_longctx"]) == set(hf_longctx.__all__)
    assert {"hf_longctx.hub", "hf_longctx.evaluation", "hf_longctx.training.packing"} <= found.keys()
    described = [(home, one) for name, homes in found.items() for one, home in homes.items() if home == name]
    assert len(described) == len(set(described))
    assert found["hf_longctx.training"]["TrainingMemory"] == "hf_longctx"


def test_a_page_describes_its_own_names_and_leads_to_the_others(conf: dict[str, Any]) -> None:
    text = conf["api_page"]("a.b", {"One": "a.b", "two": "a.b", "Other": "a", "__version__": "a.b"})
    assert text.startswith("# a.b\n")
    assert "   :members: One, two\n" in text
    assert "- `Other`: [a](a.md)\n" in text


def test_indented_code_in_a_docstring_is_marked_and_sections_are_not(conf: dict[str, Any]) -> None:
    lines = ["A sentence.", "", "    code()", "    more()", "", "Args:", "    x: One.", "", "    y: Two.", ""]
    conf["mark_code"](None, "function", "f", None, None, lines)
    assert lines == ["A sentence.", "", "::", "", *lines[4:]]
    assert lines[4:] == ["    code()", "    more()", "", "Args:", "    x: One.", "", "    y: Two.", ""]


def test_the_fields_of_a_method_are_shown(conf: dict[str, Any]) -> None:
    shown, _ = conf["show_fields"](None, "class", "LMInfinite", LMInfinite, None)
    assert all(field.name in shown for field in dataclasses.fields(LMInfinite))
    assert "n_local=" in shown
    assert conf["show_fields"](None, "function", "undo", hf_longctx.undo, None) is None


def test_a_link_to_a_folder_leads_to_a_file(conf: dict[str, Any]) -> None:
    entry = next((ROOT / "patches").glob("*/*/patch.toml")).parent.relative_to(ROOT / "patches")
    source = [f"[0001]({entry}) [a](../docs/hub.md) [b](https://huggingface.co) [c](../recipes)"]
    conf["lead_into_folders"](None, "patches/README", source)
    links = f"[0001]({entry}/patch.toml) [a](../docs/hub.md) [b](https://huggingface.co) [c](../recipes/README.md)"
    assert source == [links]


def test_ci_builds_the_site() -> None:
    assert "\nmake site\n" in (ROOT / ".ci/run").read_text()
