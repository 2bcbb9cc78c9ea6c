"""recipes/config.py: variants of a config, joined by +."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.config import joined, merged, read_variant

CONFIG: dict[str, Any] = {"out": "here", "a": {"b": {"c": 1, "d": 2}, "e": [1]}, "f": None, "whole": {"g": 1, "h": 2}}
VARIANTS: dict[str, Any] = {
    "deep": {"a": {"b": {"c": 3}}},
    "deep_too": {"a": {"b": {"c": 3}}, "f": {"i": 1}},
    "deeper": {"a": {"b": {"c": 4}}},
    "beside": {"a": {"b": {"d": 5}, "e": [6]}},
    "section": {"a": {"b": None}},
    "replaced": {"whole": {"g": 7}},
    "replaced_otherwise": {"whole": {"h": 8}},
    "made": {"f": {"j": 1}},
}


def read(variant: str) -> dict[str, Any]:
    return joined(CONFIG, variant, VARIANTS, "some.yaml", ["whole"])


def test_what_a_variant_does_not_name_stays_in_every_section() -> None:
    wanted = {"out": "here", "a": {"b": {"c": 3, "d": 5}, "e": [6]}, "f": None, "whole": {"g": 7}}
    assert read("deep+beside+replaced") == read("replaced+beside+deep") == wanted
    assert CONFIG["a"]["b"] == {"c": 1, "d": 2}, "the config itself is not changed"
    assert read("deep+deep_too")["a"]["b"]["c"] == 3, "both say the same"
    assert merged({}, VARIANTS["deep"]) == VARIANTS["deep"]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("deep+deeper", "deep sets a: b: c to 3, and deeper to 4"),
        ("deeper+beside+deep", "deeper sets a: b: c to 4, and deep to 3"),
        ("section+deep", "section sets a: b to None, and deep a: b: c to 3"),
        ("beside+section", "beside sets a: b: d to 5, and section a: b to None"),
        ("replaced+replaced_otherwise", "replaced sets whole to {'g': 7}, and replaced_otherwise to {'h': 8}"),
        ("made+deep_too", "made sets f to {'j': 1}, and deep_too to {'i': 1}"),
        ("deep+nothing", "some.yaml has no nothing; it has deep, deep_too"),
    ],
)
def test_two_that_change_one_setting_are_named(variant: str, said: str) -> None:
    with pytest.raises(ValueError, match="--variant") as error:
        read(variant)
    assert str(error.value).startswith(f"--variant {variant}: {said}")


def test_a_file_names_its_variants(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(yaml.safe_dump(CONFIG | {"variants": VARIANTS}), encoding="utf-8")
    assert read_variant(file, None) == CONFIG
    assert read_variant(file, "deep+replaced", ["whole"]) == read("deep+replaced") | {"out": "here-deep+replaced"}
    file.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    with pytest.raises(ValueError, match=r"--variant deep: some.yaml has no deep; it has none"):
        read_variant(file, "deep")
