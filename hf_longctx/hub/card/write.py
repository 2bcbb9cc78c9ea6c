"""Writes a card into the folder of a saved model, with the results that it shows and their pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...storage.files import write_whole
from .evidence import read_results
from .facts import CardFacts, facts_of
from .fits import refuse_other_model, refuse_other_settings
from .measured import FOLDER
from .own import is_ours_or_blank, is_unedited, marked, was_ours
from .page import page, told_in
from .pictures import pictures_of

logger = logging.getLogger(__name__)

_OF_A_COMPUTER = re.compile(r"(?<![\w:/])((?:/home|/root|/tmp|/Users|[A-Z]:\\\\Users)[/\\][^\s\"',]*)")
_LINKED = re.compile(rf"\]\({FOLDER}/([\w-]+\.(?:json|png))\)")  # what a card of ours took along


@dataclass(frozen=True)
class WrittenCard:
    """A card that was written.

    Args:
        card: Its path.
        facts: What its metadata say of the model's origin.
        files: The results and pictures that it shows, by their paths in the folder.
    """

    card: Path
    facts: CardFacts
    files: tuple[str, ...]


def write_card(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    results: Iterable[str | Path] = (),
    known_as: Sequence[str] = (),
    made_from: Sequence[str] = (),
    about: str = "",
    limits: Sequence[str] = (),
    overwrite: bool = False,
) -> WrittenCard | None:
    """Write README.md into a saved model's folder, unless it has one that somebody wrote or edited.

    What is not given is kept from the card that it has, `about` and `limits` included. Results are copied into the
    folder `measured`, beside their pictures, and are published with the model.

    Args:
        folder: What `save_pretrained` wrote, a model or an adapter.
        repo_id: The Hub id that the card's commands name; the folder's name without one.
        base_model: The Hub id of the model that it was made from.
        license: An identifier of the Hub; by default that of the base, where its card can be had.
        language: Codes of the languages; by default those of the base.
        results: Result files, or folders of them (see `evaluation.results`), in place of those that it has.
        known_as: Further names by which results may name the model.
        made_from: The same of its base, on which its method may have been measured.
        about: Paragraphs about the model, in Markdown.
        limits: Limits beyond those of its methods.
        overwrite: Also in the place of a card that somebody wrote.

    Returns:
        What was written; None where a card of somebody's own stays.

    Raises:
        ValueError: A licence, language or base that the Hub does not know; a result that is not of this model and its
            settings, holds NaN, or does not say with which command, commit and hardware it was made, and when.
        OSError: The folder cannot be written.
    """
    folder = Path(folder).expanduser()
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if old is not None and not overwrite and not is_ours_or_blank(old):
        return None
    name = repo_id or folder.resolve().name
    facts = facts_of(folder, old, base_model, license, language)
    before = _LINKED.findall(old) if old and was_ours(old) else []
    given = read_results(results)
    found = given or read_results(_there(folder, before))
    for one in found:
        refuse_other_settings(one, folder)
        if place := _OF_A_COMPUTER.search(one.text):
            logger.warning("%s names a place of this computer, which is published with it: %s", one.source, place[1])
    for one in given:  # the others were looked at when they came
        bases = [facts.base_model, *made_from] if facts.base_model else made_from
        refuse_other_model(one, bases, [name, folder.resolve().name, *known_as])
    pictures = {one.name: pictures_of(one) for one in found}
    told = told_in(old or "")
    told |= {"about": about.strip()} if about.strip() else {}
    told |= {"limits": "\n".join(f"- {one}" for one in limits)} if limits else {}
    text = page(folder, name, facts, found, pictures, **told)
    files = {f"{one.name}.json": one.text.encode() for one in found}
    files |= {picture.name: picture.png for many in pictures.values() for picture in many}
    # what an edited card links to may be somebody's own
    _put(folder / FOLDER, files, before if old and is_unedited(old) else ())
    write_whole(path, marked(text).encode())
    return WrittenCard(path, facts, tuple(f"{FOLDER}/{file}" for file in files))


def _there(folder: Path, names: Sequence[str]) -> list[Path]:
    """The results that the card before showed, as far as they are still there."""
    paths = [folder / FOLDER / name for name in names if name.endswith(".json")]
    for path in paths:
        if not path.is_file():
            logger.warning("%s is not there: the new card is without it.", path)
    return [path for path in paths if path.is_file()]


def _put(folder: Path, files: dict[str, bytes], before: Sequence[str]) -> None:
    """The files of the new card, and none that only the old one showed."""
    for name, data in files.items():
        write_whole(folder / name, data)
    for name in set(before) - files.keys():
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
