"""The codes of languages that the Hub accepts in a card's metadata."""

from __future__ import annotations

import re

# all of ISO 639-1; https://www.loc.gov/standards/iso639-2/php/English_list.php
_TWO = """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
    et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki
    kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no
    nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta
    te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
LANGUAGES = frozenset(_TWO.split())
# ISO 639-3 has about 8,000 codes of three letters: of these only the form is looked at. The Hub refuses capitals.
_CODE = re.compile(r"([a-z]{2,3})(-[a-z0-9]{2,8})*|code|multilingual")


def is_language(code: object) -> bool:
    """Whether the Hub takes this for a language: a code of ISO 639 in small letters, "code" or "multilingual"."""
    found = _CODE.fullmatch(code) if isinstance(code, str) else None
    return found is not None and (found[1] is None or len(found[1]) == 3 or found[1] in LANGUAGES)


def check_language(code: str) -> None:
    """ValueError for a language that the Hub does not know."""
    if not is_language(code):
        small = code.lower().replace("_", "-")
        hint = f"Did you mean {small!r}? " if small != code and is_language(small) else ""
        raise ValueError(
            f"language={code!r}: the Hub has no such language. {hint}Expected a code of ISO 639 in small letters, such "
            f"as 'en', or 'code' or 'multilingual'; several languages are given one by one."
        )
