"""`python -m recipes.benchmarks tables | check`."""

from __future__ import annotations

import sys

from hf_longctx.storage.files import write_whole
from recipes.benchmarks.tables import documents, misses, render


def main(arguments: list[str]) -> int:
    match arguments:
        case ["tables"]:
            for path in documents():
                text = path.read_text(encoding="utf-8")
                write_whole(path, render(text).encode())
            return 0
        case ["check"]:
            missed = list(misses())
            print("\n".join(missed) or "Every row holds its bar.")
            return 1 if missed else 0
    print("usage: python -m recipes.benchmarks tables | check", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
