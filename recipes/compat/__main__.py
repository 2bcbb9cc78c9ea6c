"""`python -m recipes.compat [OPTIONS OF PYTEST]`: records how the installed releases pass; `make newest-record`."""

from __future__ import annotations

import sys

from recipes.compat.record import record

if __name__ == "__main__":
    sys.exit(record(sys.argv[1:]))
