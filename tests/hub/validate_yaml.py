"""What the Hub's /api/validate-yaml answers about the metadata of a model's card, as its documentation describes it.

https://github.com/huggingface/hub-docs: modelcard.md (keys, and what model-index requires) and
docs/hub/repositories-licenses.md (licences). The Hub's limits of lengths are not published: `LONGEST` is a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

_LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc "
    "cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c "
    "ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 "
    "ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 "
    "llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other"
)
LICENSES = set(_LICENSES.split())
KEYS = {
    *("language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags", "datasets"),
    *("metrics", "base_model", "base_model_relation", "model-index", "new_version", "widget", "thumbnail", "inference"),
}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
TAGS = {"text-generation", "image-text-to-text", "zero-shot-image-classification", "fill-mask"}
LONGEST = 256
_ID = r"[\w.-]{1,96}(/[\w.-]{1,96})?"


def errors(content: str) -> list[str]:
    """What is wrong with the metadata of a README.md; nothing where there are none."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    return list(_errors(data)) if isinstance(data, dict) else ["expected keys and values"]


def _errors(data: dict[str, Any]) -> Iterator[str]:
    yield from (f'"{key}" is not allowed' for key in data.keys() - KEYS)
    yield from (f"{text[:20]!r}... is too long" for text in _texts(data) if len(text) > LONGEST)
    names = data.get("license", [])
    for name in [names] if isinstance(names, str) else names:
        if name not in LICENSES:
            yield f'"license" must be one of the list, not {name!r}'
    if data.get("license") == "other" and "/" in str(data.get("license_name", "")):
        yield '"license_name" must be a name'
    for base in _many(data.get("base_model")):
        if not re.fullmatch(_ID, base):
            yield f'"base_model" {base!r} is not a model id'
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        yield f'"base_model_relation" must be one of {sorted(RELATIONS)}'
    if data.get("pipeline_tag", "text-generation") not in TAGS:
        yield f'"pipeline_tag" {data["pipeline_tag"]!r} is not known'
    for code in _many(data.get("language")):
        if not re.fullmatch(r"[a-z]{2,3}(-\w+)?|code|multilingual", code):
            yield f'"language" {code!r} must be a code of ISO 639'
    for tag in _many(data.get("tags")):
        if not isinstance(tag, str) or not tag:
            yield '"tags" must be texts'
    for index in data.get("model-index", []):
        yield from _index_errors(index)


def _index_errors(index: dict[str, Any]) -> Iterator[str]:
    if not isinstance(index.get("name"), str) or not index.get("results"):
        yield '"model-index[].name" and "results" are required'
    for number, result in enumerate(index.get("results", [])):
        at = f"model-index[0].results[{number}]"
        needed = (("task", "type"), ("dataset", "type"), ("dataset", "name"))
        yield from (f'"{at}.{a}.{b}" is required' for a, b in needed if not result.get(a, {}).get(b))
        if not result.get("metrics"):
            yield f'"{at}.metrics" is required'
        for metric in result.get("metrics", []):
            value = metric.get("value")
            if not metric.get("type") or isinstance(value, bool) or not isinstance(value, int | float):
                yield f'"{at}.metrics[].type" and a number as "value" are required'
            elif not math.isfinite(value):
                yield f'"{at}.metrics[].value" must be finite'
        if not str(result.get("source", {}).get("url", "https://")).startswith("https://"):
            yield f'"{at}.source.url" must be a uri'


def _many(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
