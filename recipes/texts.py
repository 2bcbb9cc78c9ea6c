"""Texts of a folder for training, some of which are held back whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_longctx.text.corpora import load_text
from hf_longctx.text.held_back import RUN, overlap, refuse_shared
from hf_longctx.text.repeats import Dropped, drop_repeated


@dataclass(frozen=True)
class Apart:
    """Texts by name, without the paragraphs that came before.

    Args:
        held: Those that are held back; they lost nothing to the others.
        training: All others.
        dropped: What was dropped of each.
    """

    held: dict[str, str]
    training: dict[str, str]
    dropped: dict[str, Dropped]


def read_folder(folder: str | Path) -> dict[str, str]:
    """The .txt files of a folder, by their names without the ending.

    Raises:
        ValueError: There is none.
    """
    files = sorted(Path(folder).expanduser().glob("*.txt"))
    if not files:
        # fetching the usual ones into it would give two folders the same texts
        asked = f"{Path(folder).parent} --more" if Path(folder).name == "more" else folder
        raise ValueError(
            f"documents: {folder}: expected a folder of .txt files. `python -m recipes.benchmarks.documents {asked}` "
            "fetches some."
        )
    return {file.stem: load_text(file) for file in files}


def read_folders(folders: Sequence[str | Path]) -> dict[str, str]:
    """The .txt files of several folders, as `read_folder` reads each; a folder that is named twice counts once.

    Raises:
        ValueError: A folder has none, or two folders have texts of the same name.
    """
    texts, places = dict[str, str](), dict[str, str | Path]()
    for folder in {Path(one).expanduser().resolve(): one for one in folders}.values():
        found = read_folder(folder)
        if twice := [name for name in found if name in texts]:
            raise ValueError(
                f"documents: {', '.join(f'{name}.txt' for name in twice)}: in {places[twice[0]]} and in {folder}; "
                "expected each name once. Rename or remove one."
            )
        texts |= found
        places |= dict.fromkeys(found, folder)
    return texts


def set_apart(texts: Mapping[str, str], held_back: Sequence[str]) -> Apart:
    """The texts in two sets, repeated paragraphs dropped.

    Raises:
        ValueError: A held-back text is missing, or is trained on as well.
    """
    if missing := [name for name in held_back if name not in texts]:
        raise ValueError(f"held_back: {', '.join(missing)}: not among the documents, which are {', '.join(texts)}.")
    others = [name for name in texts if name not in held_back]
    refuse_shared({n: texts[n] for n in held_back}, {n: texts[n] for n in others})
    # the held-back ones first: they lose nothing to the others
    order = [*dict.fromkeys(held_back), *others]
    kept, dropped = drop_repeated(texts[name] for name in order)
    by_name = dict(zip(order, kept, strict=True))
    held = {name: by_name[name] for name in order if name in held_back}
    return Apart(held, {name: by_name[name] for name in others}, dict(zip(order, dropped, strict=True)))


def shares_in_training(
    held: Mapping[str, Sequence[int]], training: Mapping[str, Sequence[int]], most: float
) -> dict[str, float]:
    """Of the tokens of each held-back text, the share in runs of 13 that are trained on.

    Args:
        held: Token ids by name.
        training: Token ids by name.
        most: The share from which on a text cannot be held back.

    Raises:
        ValueError: A share is above that.
    """
    found = dict(zip(held, overlap(held.values(), training.values()), strict=True))
    for name, share in found.items():
        if share > most:
            raise ValueError(
                f"held_back: {name}: {share:.1%} of its tokens lie in runs of {RUN} that are trained on; expected at "
                f"most {most:.1%}. Hold back another document, or take the one that holds them out of training."
            )
    return found
