"""TRL, by which some recipes train, and which others do without."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from hf_longctx.upstream.installing import Package, check_packages, install_extra

# with what its data sets are made of
TRL = Package("this recipe trains by TRL", ("datasets", "trl"), install_extra("trl"))


def needed_by(line: str, args: argparse.Namespace) -> Sequence[Package]:
    """TRL where a benchmark's --lines have the line that trains by it, without --smoke; it says what needs it."""
    wanted = line in args.lines and not args.smoke
    return (replace(TRL, use=f"of --lines, {line!r} needs TRL"),) if wanted else ()


def check_trl() -> None:
    """ImportError with what to install, unless TRL and what its data sets are made of can be imported."""
    check_packages([TRL])
