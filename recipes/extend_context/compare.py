"""Two models on the same tokens: the ratio of their perplexities, with an interval by paired bootstrap over windows.

python -m recipes.extend_context.compare OURS/report.json REFERENCE/report.json
python -m recipes.extend_context.compare OURS/report.json CONTROL/report.json --ablation NONE/report.json --out FILE
python -m recipes.extend_context.compare OURS/report.json --out FILE.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_longctx.evaluation.results import result_file, write_results
from recipes.outs import new_file

DRAWS = 10_000
COMMAND = "python -m recipes.extend_context.train"  # of reports that do not say theirs


def ratio(
    ours: dict[str, Any], length: int, reference: dict[str, Any], other: int, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Any]:
    """The perplexity of `ours` with contexts of `length` over that of `reference` with contexts of `other`.

    Documents weigh the same. Windows of a document are drawn with replacement, the same ones for both.

    Args:
        ours: A model's `curves`.
        length: Context of ours, in tokens.
        reference: Another's, or the same.
        other: Its context.
        seed: Of the draws.
        draws: How many.

    Raises:
        ValueError: The two do not have the same windows, or a length was not measured.
    """
    rng, sums, each = np.random.default_rng(seed), np.zeros(draws), {}
    if not ours or set(ours) != set(reference):
        raise ValueError(f"documents {sorted(ours)} and {sorted(reference)}: expected the same ones, at least one.")
    for name in ours:
        if ours[name]["ends"] != reference[name]["ends"]:
            raise ValueError(f"{name}: the windows end at different places. Measure both with the same settings.")
        differences = np.subtract(nll(ours, name, length), nll(reference, name, other))
        each[name] = float(np.exp(differences.mean()))
        sums += rng.choice(differences, (draws, len(differences))).mean(1)
    low, high = np.quantile(np.exp(sums / len(ours)), [0.025, 0.975])
    mean = float(np.exp(np.mean(np.log(list(each.values())))))
    return {"mean": mean, "low": float(low), "high": float(high), "documents": each}


def measured_at(curves: dict[str, Any]) -> list[int]:
    """The contexts that documents were measured with, the shortest first."""
    return sorted({int(n) for one in curves.values() for n in one["nll"]})


def longest(curves: dict[str, Any]) -> int:
    """The longest of them."""
    return measured_at(curves)[-1]


def nll(curves: dict[str, Any], name: str, length: int) -> list[float]:
    found = curves[name]["nll"]
    if str(length) not in found:
        raise ValueError(f"{name}: no contexts of {length} tokens were measured; there are {', '.join(found)}.")
    values: list[float] = found[str(length)]
    return values


def rows(ours: dict[str, Any], reference: dict[str, Any], name: str) -> dict[str, Any]:
    """Ours at its longest and in the window, over the reference at the longest context that it was measured at."""
    lengths, others = measured_at(ours), measured_at(reference)
    found = {f"{lengths[-1]} over {name} at {others[-1]}": ratio(ours, lengths[-1], reference, others[-1])}
    for length in lengths:
        if length in others and name != "itself":
            found[f"{length} over {name} at {length}"] = ratio(ours, length, reference, length)
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path, help="report.json of a run")
    parser.add_argument("reference", nargs="?", type=Path, help="that of another, such as --variant control")
    parser.add_argument("--ablation", type=Path, help="with --out: report.json of --variant no_retrieval")
    parser.add_argument(
        "--out", type=new_file, help="a result file with what must be reached; REFERENCE is the control"
    )
    args = parser.parse_args(arguments)
    if args.reference is None and args.out is None:
        parser.error("give another report.json to compare with, or --out FILE.json for what must be reached")
    paths = args.ours, args.reference, args.ablation
    ours, other, ablation = (path and json.loads(path.read_text(encoding="utf-8")) for path in paths)
    if other is not None:
        name, curves = args.reference.parent.name, ours["after"]["curves"]
        found = rows(curves, other["after"]["curves"], name)
        for positions, measured in other.get("scaled", {}).items():
            found |= rows(curves, measured["curves"], f"{name} with positions {positions}")
        print(json.dumps(found, indent=2))
    if args.out is not None:
        write(args.out, ours, other, ablation)


def write(out: Path, ours: dict[str, Any], control: dict[str, Any] | None, ablation: dict[str, Any] | None) -> None:
    """The result file of a run beside its control; hardware, versions and commit are those of the run."""
    from .bars import rows as barred

    where = {key: ours[key] for key in ("commit", "hardware", "versions")}
    words = [one.get("command", COMMAND) for one in (ours, control, ablation) if one]
    data = result_file([], model=ours["base"], command=" && ".join(words)) | where
    write_results(out, data | {"rows": barred(ours, control, ablation)})


if __name__ == "__main__":
    main()
