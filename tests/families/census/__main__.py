"""`python -m tests.families.census [family ...]`: a line for each family, a summary, and 1 where something is wrong."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping

import transformers

from tests.families.census import record
from tests.families.census.looking import ROUNDING, Verdict
from tests.families.census.running import DECODERS, judge_all, quiet
from tests.families.census.scope import MODEL_TYPES


def main() -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.families.census", description=__doc__)
    parser.add_argument("family", nargs="*", help="model types; all causal language models of transformers by default")
    parser.add_argument("--write", action="store_true", help="keep the verdicts as this release's file")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=int, default=60, metavar="SECONDS", help="of one family, which is then untried")
    args = parser.parse_args()
    unknown = sorted(set(args.family) - set(MODEL_TYPES))
    if unknown:
        parser.error(f"transformers {transformers.__version__} has no causal language model {', '.join(unknown)}")
    if args.write and args.family:
        parser.error("--write keeps the verdicts on all families; name none")
    quiet()
    began, verdicts = time.monotonic(), {}
    for name, verdict in judge_all(args.family or MODEL_TYPES, args.processes, args.limit):
        verdicts[name] = verdict
        print(f"{name}: {verdict.line()}", flush=True)
    release = record.reference()
    lines = problems(verdicts, release)
    print(*lines, summary(verdicts), f"{time.monotonic() - began:.0f} s", sep="\n")
    if args.write:
        print(f"written to {record.write(verdicts)}")
    return bool(lines)


def problems(verdicts: Mapping[str, Verdict], release: str | None) -> list[str]:
    """What must not be: silent errors, crashes, and families that are served no longer. A line each."""
    bad = [f"{name}: {verdict.line()}" for name, verdict in verdicts.items() if verdict.state in ("WRONG", "CRASH")]
    lost = record.fallen(verdicts, release) if release is not None else []
    return bad + [f"{name}: served at transformers {release}, now {verdicts[name].line()}" for name in lost]


def summary(verdicts: Mapping[str, Verdict]) -> str:
    """Counts of the states, and the served families that are further off than rounding."""
    counts = Counter(verdict.state for verdict in verdicts.values())
    decoders = sum(counts[state] for state in DECODERS)
    beyond = [name for name, verdict in verdicts.items() if verdict.state == "served" and verdict.off() > ROUNDING]
    lines = [f"transformers {transformers.__version__}: {counts['served']} of {decoders} rotary decoders are served"]
    lines.append(", ".join(f"{state} {count}" for state, count in sorted(counts.items())))
    lines += [f"served, but further than {ROUNDING:.0e} from the stock model: {', '.join(beyond)}"] if beyond else []
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
