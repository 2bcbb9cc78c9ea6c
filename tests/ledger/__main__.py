"""`python -m tests.ledger [ID ...] [--write]`: run the scripts of the ledger on the installed releases."""

from __future__ import annotations

import argparse
import sys
import time

from hf_longctx.upstream.ledger import chosen, defects, ledger
from hf_longctx.upstream.scripts import check
from tests.ledger.record import record, write_readme


def main() -> int:
    """Show what each script says; with `--write`, record it. The exit code is 0: a defect is no failure here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="entries; all of them by default")
    parser.add_argument("--write", action="store_true", help="record what was seen, and render the README")
    given = parser.parse_args()
    for one in chosen(given.ids or None):
        start = time.perf_counter()
        found = check(one)
        took = time.perf_counter() - start
        print(f"{one.id} {one.package} {one.version}: {found.state} ({took:.1f} s) {found.told}", flush=True)
        if given.write:
            record(one, found)
    if given.write:
        write_readme(ledger(), defects())
    return 0


if __name__ == "__main__":
    sys.exit(main())
