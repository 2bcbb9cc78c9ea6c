"""The site of `make site`: the repository root is its source, so that links between documents work as they are."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

project = "hf_longctx"
copyright = "the hf_longctx authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "hf_longctx"
html_copy_source = False
root_doc = "docs/site/contents"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/site/**.md",
    "model_cards/*.md",
    "recipes/README.md",
    "recipes/**/README.md",
    "patches/README.md",
]
exclude_patterns = [".*", "build", "demo-out"]  # else every file of .venv is looked at
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
default_role = "code"  # docstrings have code in single backticks
napoleon_use_ivar = True  # attributes in a list: some are documented where they are, too
autodoc_typehints = "description"
autodoc_default_options = {"show-inheritance": True}
API = ROOT / "docs/site/api"


def public_names() -> dict[str, dict[str, str]]:
    """Of the package and of each room with an `__all__`: its names, and the module on whose page each is."""
    import hf_longctx

    rooms = [found.name for found in pkgutil.walk_packages(hf_longctx.__path__, "hf_longctx.") if found.ispkg]
    homes: dict[int, str] = {}
    found: dict[str, dict[str, str]] = {}
    for name in ["hf_longctx", *rooms]:
        module = importlib.import_module(name)
        if names := getattr(module, "__all__", None):
            found[name] = {one: homes.setdefault(id(getattr(module, one)), name) for one in names}
    return found


def write_api(app: Any) -> None:
    """A page for each of them. What several export is described on the first page, and the others lead to it."""
    API.mkdir(exist_ok=True)
    pages = {name: api_page(name, homes) for name, homes in public_names().items()}
    for old in API.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        page = API / f"{name}.md"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:  # else it is rendered again
            page.write_text(text, encoding="utf-8")


def api_page(name: str, homes: dict[str, str]) -> str:
    """The text of a page."""
    own = [one for one, home in homes.items() if home == name and not one.startswith("__")]
    other = [f"- `{one}`: [{home}]({home}.md)" for one, home in homes.items() if home != name]
    members = f"   :members: {', '.join(own)}\n" if own else ""
    text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}```\n"
    return text + ("\nAlso exported:\n\n" + "\n".join(other) + "\n" if other else "")


def mark_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put the `::` of reStructuredText before the indented code of docstrings, which do without."""
    marked: list[str] = []
    for i, line in enumerate(lines):
        # the lines below `Args:` follow it at once
        if line.startswith("    ") and i > 1 and not lines[i - 1] and not lines[i - 2].startswith(" "):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked


def show_fields(app: Any, what: str, name: str, obj: Any, options: Any, *told: Any) -> tuple[str, None] | None:
    """The fields of a dataclass with their defaults, where a base checks them in a `__new__(cls, *args, **fields)`."""
    if what != "class" or not dataclasses.is_dataclass(obj):
        return None
    bare = [one.replace(annotation=one.empty) for one in inspect.signature(obj.__init__).parameters.values()][1:]
    return str(inspect.Signature(bare)), None


def lead_into_folders(app: Any, page: str, source: list[str]) -> None:
    """A link to a folder, which a repository's page can show, leads to the file that says what is in it."""
    place = (ROOT / page).parent

    def lead(link: re.Match[str]) -> str:
        files = [name for name in ("README.md", "patch.toml") if (place / link[1] / name).is_file()]
        return f"]({link[1].rstrip('/')}/{files[0]})" if files else link[0]

    source[0] = re.sub(r"\]\(([^)#:\s]+)\)", lead, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_code, priority=100)  # before napoleon's, which reads the sections
    app.connect("builder-inited", write_api)
    app.connect("source-read", lead_into_folders)
    app.connect("autodoc-process-signature", show_fields)
