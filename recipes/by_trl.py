"""TRL, by which some recipes train, and which others do without."""

from __future__ import annotations

from hf_longctx.upstream.installing import install_extra


def check_trl() -> None:
    """ImportError with what to install, unless TRL and what its data sets are made of can be imported."""
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise ImportError(f"this recipe trains by TRL ({error}). Install it: {install_extra('trl')}.") from error
