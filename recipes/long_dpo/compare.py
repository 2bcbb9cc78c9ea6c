"""Two reports of the same training, on one process and on several: the largest relative difference between them.

python -m recipes.long_dpo.compare one/report.json two/report.json --within 1e-5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.evaluation.rows import row
from recipes.outs import new_file


def values(report: dict[str, Any]) -> dict[str, float]:
    """The loss and gradient norm of each step, and the loss of the held-out pairs before and after."""
    names = {"loss": "loss", "grad_norm": "gradient norm"}
    found = {f"step {i}, {names[key]}": step[key] for i, step in enumerate(report["steps"], 1) for key in names}
    return found | {f"held out, {when}, loss": report[when]["loss"] for when in ("before", "after")}


def difference(report: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of two reports; ValueError unless they have the same steps and pairs."""
    ours, theirs = values(report), values(other)
    same = [name for name in ("pairs", "left out") if report.get(name) != other.get(name)]
    if ours.keys() != theirs.keys() or same:
        raise ValueError(
            f"the reports are of different trainings: {len(report['steps'])} and {len(other['steps'])} steps, "
            f"{report.get('pairs')} and {other.get('pairs')} pairs. Train both by the same config."
        )
    return max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in ours)


def main(words: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs=2, type=Path, metavar="REPORT", help="report.json of the two trainings")
    parser.add_argument("--within", type=float, default=1e-5, help="the largest relative difference that is right")
    parser.add_argument("--out", type=new_file, help="a result file, such as recipes/benchmarks/results/long_dpo.json")
    parser.add_argument("--model", default="", help="its name, for the result file")
    args = parser.parse_args(words)
    try:
        one, other = (json.loads(path.read_text(encoding="utf-8")) for path in args.reports)
        found = difference(one, other)
    except (ValueError, OSError, KeyError) as error:
        parser.exit(2, f"{error}\n")
    for name, value in values(one).items():
        print(f"{name}: {value:.8f} on {one['processes']}, {values(other)[name]:.8f} on {other['processes']}")
    what = f"DPO, {len(one['steps'])} steps: largest relative difference of a loss or gradient norm on "
    what += f"{other['processes']} processes to {one['processes']}"
    made = row(what, found, "", bar=f"<= {args.within}", detail={"reports": [one, other]})
    print(f"largest relative difference {found:.2e}: {'within' if made['holds'] else 'beyond'} {args.within}")
    if args.out:
        import torch

        data = result_file([made], model=args.model, device="cuda" if torch.cuda.is_available() else "cpu")
        write_results(args.out, data | {"command": "python -m recipes.long_dpo.compare ONE TWO"})
    return 0 if made["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
