"""The card of a published model: what it is, how it is loaded with and without hf_longctx, and what was measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage.files import write_whole
from ..upstream.installing import INSTALL
from . import shim
from .tiers import DUAL, NATIVE, Tier, entry_of, has_tokenizer, procedures_of, read_json, tier_of

# ends every card that was written here, and tells one that was edited afterwards
_MARK = "<!-- card of hf_longctx, sha256 {} -->\n"
_FROM_PEFT = r"### Framework versions|- PEFT [\w.+]+|"  # what PEFT adds to the blank card of huggingface_hub
_MADE_FROM = ("command", "commit", "hardware", "date")  # what a result must say of itself


def write_card(
    folder: Path,
    repo_id: str | None = None,
    *,
    base_model: str | None = None,
    results: Sequence[str | Path] = (),
) -> bool:
    """Write README.md into a saved model's folder, unless it has one of its own. Returns whether it was written.

    Args:
        folder: What `save_pretrained` wrote.
        repo_id: The Hub id that the card's commands name; the folder's name without one.
        base_model: The Hub id of the model that it was made from.
        results: Files of `recipes/benchmarks/results/`, whose rows become a table.

    Raises:
        ValueError: A result does not say with which command, commit and hardware it was made, and when.
    """
    path = folder / "README.md"
    if path.exists() and not is_ours_or_blank(path.read_text(encoding="utf-8", errors="replace")):
        return False
    text = card(folder, repo_id or folder.name, base_model, results)
    write_whole(path, (text + _mark(text)).encode())
    return True


def is_unedited(text: str) -> bool:
    """Whether this is a card as `write_card` wrote it, which may be written again."""
    body, mark, digest = text.rpartition(_MARK.partition(" sha256")[0])
    return bool(mark) and mark + digest == _mark(body)


def is_ours_or_blank(text: str) -> bool:
    """Whether nobody has written this card: it is `write_card`'s, or PEFT's with none of its fields filled in."""
    if is_unedited(text):
        return True
    from huggingface_hub import ModelCard, ModelCardData

    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    blank = {line.strip() for line in ModelCard.from_template(ModelCardData()).text.splitlines()}
    left = {line.strip() for line in body.splitlines()} - blank
    return "[More Information Needed]" in body and all(re.fullmatch(_FROM_PEFT, line) for line in left)


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def card(folder: Path, repo_id: str, base_model: str | None, results: Sequence[str | Path] = ()) -> str:
    """The text of the card."""
    entry, tier, procedures = entry_of(folder), tier_of(folder), procedures_of(folder)
    adapter = read_json(folder, "adapter_config.json") if not (folder / "config.json").exists() else None
    if base_model is None and adapter is not None:
        base_model = adapter.get("base_model_name_or_path")
    parts = [
        _yaml([*(entry or {}).get("methods", []), *procedures], base_model, adapter is not None),
        f"# {repo_id.rpartition('/')[2]}",
        _about(entry, base_model) if entry or not procedures else "",
        _procedures(procedures),
    ]
    if entry is not None:
        parts += ["## Loading", _table(("how it is loaded", "what it is"), tier.loads)]
    tokenizer = repo_id if has_tokenizer(folder) else base_model if adapter is not None else None
    parts += [_commands(repo_id, tokenizer, tier, adapter is not None, procedures), *_setting(entry)]
    parts += ["## Measured", *_measured(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _yaml(carried: Sequence[Mapping[str, Any]], base_model: str | None, adapter: bool) -> str:
    from huggingface_hub import ModelCardData

    names = [spec["name"] for spec in carried]
    tags = ["hf_longctx", "long-context", *names] if names else ["long-context"]
    about: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base_model:
        about |= {"base_model": base_model}
    return f"---\n{ModelCardData(tags=tags, **about).to_yaml()}\n---"


def _about(entry: Any, base_model: str | None) -> str:
    what = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "This model"
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
    from ..registry import entries, from_spec

    own = [{k: v for k, v in spec.items() if k != "native"} for spec in specs]
    return [f"- `{from_spec(spec)!r}`: {entries()[spec['name']]['summary']}" for spec in own]


def _commands(
    repo_id: str, tokenizer: str | None, tier: Tier, adapter: bool, procedures: Sequence[Mapping[str, Any]]
) -> str:
    trust = ", trust_remote_code=True" if tier is DUAL else ""
    ours = procedures or tier not in (NATIVE, DUAL)
    lines = [
        f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if tokenizer else ''}",
        *(["import hf_longctx"] if ours else []),
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}"{trust})',
        *([f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")'] if tokenizer else []),
        *(f"model.generate(**inputs, custom_generate=hf_longctx.{spec['name']})" for spec in procedures),
    ]
    parts = ["\n".join(["```python", *lines, "```"])]
    if tier is not NATIVE or procedures:
        parts.insert(0, f"To install hf_longctx: {INSTALL}.")
    if tier is not NATIVE and not adapter:
        parts.append(
            f"`hf-longctx serve {repo_id}` serves it (`transformers serve` and other engines serve the stock model). "
            f"`hf-longctx hub check {repo_id}` says what it loads as."
        )
    if tier is DUAL:
        parts.append(
            f"A copy that is saved without hf_longctx loses {shim.FILE}, which `trust_remote_code=True` needs: "
            f"`hf-longctx hub repair FOLDER` writes it again."
        )
    return "\n\n".join(parts)


def _setting(entry: Any) -> list[str]:
    if entry is None:
        return []
    return ["The entry in its config:", f'```json\n"hf_longctx": {json.dumps(entry, indent=2)}\n```']


def _measured(results: Sequence[str | Path]) -> list[str]:
    if not results:
        return ["Not measured: this card was written without results."]
    parts = []
    for found in map(read_result, results):
        rows = [(row["what"], f"{_number(row['value'])} {row.get('unit') or ''}".strip()) for row in found["rows"]]
        parts += [_table(("what", "measured"), rows), _source(found)]
    return parts


def read_result(path: str | Path) -> dict[str, Any]:
    """A file of `recipes/benchmarks/results/`. ValueError if it is none."""
    todo = "Give a file that a command of recipes/benchmarks wrote."
    if not Path(path).is_file():
        raise ValueError(f"{str(path)!r}: there is no such file of results. {todo}")
    try:
        found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}). {todo}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}, expected an object. {todo}")
    missing = [name for name in (*_MADE_FROM, "rows") if not found.get(name)]
    if missing:
        raise ValueError(f"{str(path)!r} does not say its {', '.join(missing)}. {todo}")
    return found


def _source(found: Mapping[str, Any]) -> str:
    model = f"model {found['model']}, " if isinstance(found.get("model"), str) else ""
    hardware = found["hardware"]
    return f"`{found['command']}`, {model}{hardware}, {found['date']}, commit {found['commit']}."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *cells]]
    return "\n".join(lines)
