"""TRL, by which some recipes train, and which others do without."""

from __future__ import annotations

from dataclasses import replace

from hf_longctx.upstream.installing import Package, check_packages, install_extra

# with what its data sets are made of
TRL = Package("this recipe trains by TRL", ("datasets", "trl"), install_extra("trl"))


def for_line(line: str) -> Package:
    """TRL for one of several lines of a benchmark, which says how to do without it."""
    return replace(TRL, use=f"of --lines, {line!r} needs TRL")


def check_trl() -> None:
    """ImportError with what to install, unless TRL and what its data sets are made of can be imported."""
    check_packages([TRL])
