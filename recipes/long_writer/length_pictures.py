"""Pictures of asked and written words: `python -m recipes.long_writer.length_pictures report.json --out DIR`.

Takes the report of chain.py, or files of score.py, and draws `lengths-plain.png` and `lengths-counted.png`: one model
a colour, beside a writer of always 1,000 words and one that stops at random.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.report.lengths import Written, length_figure
from hf_longctx.evaluation.report.plots import save
from recipes.outs import new_folder

ABOUT = {"plain": "plain text", "counted": "text in counted parts"}
Forms = dict[str, dict[str, list[Written]]]  # by form and model


def read_lengths(paths: Sequence[Path]) -> tuple[Forms, str]:
    """Asked and written words of every answer, by form and model; and on what they were measured.

    Raises:
        ValueError: A file is no report and no scores, or none has scores of writing.
        OSError: A file cannot be read.
    """
    forms, hardware = Forms(), dict[str, None]()
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            lines = data["lines"] if "lines" in data else {data["model"]: data["scores"]}
            for name, cell in ((name, cell) for name, scores in lines.items() for cell in scores["writing"]):
                forms.setdefault(cell["form"], {}).setdefault(name, []).extend(_answers(cell))
            hardware[str(data["hardware"])] = None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: no scores of writing can be read ({type(error).__name__}: {error}). Give the report.json of "
                "chain.py, or what score.py wrote."
            ) from None
    if not forms:
        raise ValueError(
            f"{', '.join(map(str, paths))}: writing was not scored. Give --writing to chain.py or score.py."
        )
    return forms, ", ".join(hardware)


def _answers(cell: Mapping[str, Any]) -> list[Written]:
    answers = zip(cell["words"], cell["ended"], strict=True)
    return [Written(cell["asked"], words, bool(ended)) for words, ended in answers]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="report.json of chain.py, or files of score.py")
    parser.add_argument("--out", type=new_folder, required=True, help="a folder for the pictures")
    given = parser.parse_args(arguments)
    try:
        forms, hardware = read_lengths(given.files)
        for form, written in forms.items():
            about = f"{ABOUT.get(form, form)}, measured on {hardware}"
            path = given.out / f"lengths-{form}.png"
            save(length_figure(written, title="Asked and written words", subtitle=about), path)
            print(path)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
