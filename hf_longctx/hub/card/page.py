"""The text of a card, put together from its parts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tiers import entry_of, has_tokenizer, is_adapter, procedures_of, tier_of
from .evidence import Evidence
from .facts import CardFacts
from .fits import carried_by
from .index import eval_results
from .limits import limits_of
from .loading import loading
from .measured import FOLDER, measured
from .metadata import header, pipeline_tag
from .pictures import Picture

_TOLD = re.compile(r"<!-- (about|limits) -->\n(.*?)\n<!-- /\1 -->", re.DOTALL)


def page(
    folder: Path,
    repo_id: str,
    facts: CardFacts,
    found: Sequence[Evidence] = (),
    pictures: Mapping[str, Sequence[Picture]] | None = None,
    *,
    about: str = "",
    limits: str = "",
) -> str:
    """The card.

    Args:
        folder: Of the saved model.
        repo_id: What commands name.
        facts: Where the model comes from.
        found: The results.
        pictures: Of the results, by their names.
        about: Paragraphs after the first one, in Markdown; `told_in` finds them again.
        limits: A list of limits beyond those of its methods; it is found again as well.
    """
    entry, tier, procedures = entry_of(folder), tier_of(folder), procedures_of(folder)
    carried = carried_by(folder)
    names = list(dict.fromkeys([one["name"] for one in carried]))
    measured_names = [one.method["name"] for one in found if one.method]
    tag, base = pipeline_tag(folder), facts.base_model
    address = f"https://huggingface.co/{repo_id}/blob/main/{FOLDER}" if "/" in repo_id else None
    results = eval_results(found, tag, address)
    title = repo_id.rpartition("/")[2]
    tokenizer = repo_id if has_tokenizer(folder) else base if is_adapter(folder) else None
    parts = [
        header(folder, title, facts, names, results, ours=bool(carried)),
        f"# {title}",
        _about(entry, base) if entry or not procedures else "",
        _procedures(procedures),
        _told("about", about),
        "## Loading",
        _table(("how it is loaded", "what it is"), tier.loads) if entry is not None else "",
        *loading(repo_id, tokenizer, tier, tag, procedures),
        *_setting(entry),
        "## Measured",
        *measured(found, pictures or {}),
        *_limits(list(dict.fromkeys([*names, *measured_names])), limits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(entry: Any, base: str | None) -> str:
    what = f"[{base}](https://huggingface.co/{base})" if base else "A model"
    if not entry:
        return f"{what}, saved with hf_longctx. transformers loads it as it is."
    head = f"{what} with methods of hf_longctx, to read beyond the length it was trained for:"
    return "\n".join([head, "", *_lines(entry["methods"])])


def _procedures(specs: Sequence[Mapping[str, Any]]) -> str:
    if not specs:
        return ""
    head = "The settings of a way to generate, which count where `generate` has it as `custom_generate`:"
    return "\n".join([head, "", *_lines(specs)])


def _lines(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    from ...registry import entries, from_spec

    own = [{k: v for k, v in spec.items() if k != "native"} for spec in specs]
    return [f"- `{from_spec(spec)!r}`: {entries()[spec['name']]['summary']}" for spec in own]


def _setting(entry: Any) -> list[str]:
    if entry is None:
        return []
    return ["The entry in its config:", f'```json\n"hf_longctx": {json.dumps(entry, indent=2)}\n```']


def told_in(card: str) -> dict[str, str]:
    """The `about` and `limits` that a card was written with."""
    return dict(_TOLD.findall(card))


def _told(name: str, text: str) -> str:
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->" if text else ""


def _limits(names: Sequence[str], more: str) -> list[str]:
    parts = [_told("limits", more)] if more else []
    for name in names:
        title, text = limits_of(name)
        parts += [f"Of {title}, from its page in hf_longctx:", text]
    return ["## Limits", *parts] if parts else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *cells]]
    return "\n".join(lines)
