"""What a card's metadata says of a model's origin: given, kept from the card before, or taken from its base's card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tiers import read_json
from .languages import check_language, is_language
from .licenses import LICENSES, check_license

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_SECONDS = 5.0  # to wait for the Hub
_KEPT = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class CardFacts:
    """What is known of a model's origin.

    Args:
        base_model: The Hub id of the model that it was made from.
        license: An identifier of the Hub; `license_name` and `license_link` go with "other".
        language: Codes of ISO 639, "code" or "multilingual".
    """

    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()


def check_base_model(name: str) -> None:
    """ValueError for what cannot be the Hub id of a model."""
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"base_model={name!r}: expected the Hub id of a model, such as 'owner/model'.")


def facts_of(
    folder: Path, card: str | None, base_model: str | None, license: str | None, language: Sequence[str]
) -> CardFacts:
    """The facts about a saved model.

    Args:
        folder: Of the model.
        card: The text of the card that it has, whose metadata count where nothing is given.
        base_model: As in `CardFacts`; of an adapter, by default, what its config names.
        license: As in `CardFacts`; by default that of the base, where its card can be had.
        language: As in `CardFacts`; by default those of the base.

    Raises:
        ValueError: A value is none of the Hub's.
    """
    if base_model is not None:
        check_base_model(base_model)
    if license is not None:
        check_license(license)
    for code in language:
        check_language(code)
    before = _metadata(card or "")
    base = base_model or before.get("base_model") or _base_of_adapter(folder)
    base = base if isinstance(base, str) and _HUB_ID.fullmatch(base) else None
    known = _kept(before)
    if base is not None and not (license or known.get("license")):
        known = {**_of_base(base), **known}
    told = tuple(language) or _languages(known.get("language"))
    inherited = known.get("license")
    named = {} if license else {key: known[key] for key in ("license_name", "license_link") if key in known}
    return CardFacts(
        base,
        license or (inherited if inherited in LICENSES else None),
        language=told,
        **named,
    )


def _kept(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a card's metadata says of license and language; false, which is Norwegian in YAML, included."""
    return {key: metadata[key] for key in _KEPT if metadata.get(key) not in (None, "", [])}


def _languages(told: Any) -> tuple[str, ...]:
    """Those of a card's metadata that the Hub takes, one or a list; YAML reads the code of Norwegian as false."""
    many = told if isinstance(told, list | tuple) else [told]
    return tuple(code for code in ("no" if one is False else one for one in many) if is_language(code))


def _of_base(base: str) -> dict[str, Any]:
    """What the card of the base says, in the cache or on the Hub; nothing where it cannot be had."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(base, "README.md")
    if isinstance(cached, str):
        found = _metadata(Path(cached).read_text(encoding="utf-8", errors="replace"))
    else:
        try:
            data = HfApi().model_info(base, timeout=_SECONDS).card_data
        except Exception:  # no such model, no network, no right to read it: the card then says nothing of it
            return {}
        found = data.to_dict() if data is not None else {}
    return _kept(found)


def _metadata(card: str) -> dict[str, Any]:
    """The metadata of a card; none where there are none that can be read."""
    if not card.startswith("---"):
        return {}
    from huggingface_hub import ModelCard

    try:
        return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())
    except Exception:  # yaml's own errors as well
        return {}


def _base_of_adapter(folder: Path) -> str | None:
    base = (read_json(folder, "adapter_config.json") or {}).get("base_model_name_or_path")
    return base if isinstance(base, str) and not Path(base).exists() else None
