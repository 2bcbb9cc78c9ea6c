"""The defects of upstream that the ledger knows: which of them these versions have, and which are cured here."""

from __future__ import annotations

from collections.abc import Iterator

from ..upstream import active
from ..upstream.ledger import FIXED, WRONG, defects
from .diagnosis import Diagnosis


def upstream() -> Iterator[Diagnosis]:
    """One line for each that the installed version of its package is known to have, or was not looked at.

    No script of the ledger is run: `hf-longctx patches check` does.
    """
    known = list(defects().values())
    here = [one for one in known if one.version and one.seen.get(one.version) != FIXED]
    applied = {shim.defect.id for shim in active()}
    yield Diagnosis("upstream", f"{len(known)} defects known, {len(here)} of them here or not looked at")
    for one in here:
        state = "present" if one.seen.get(one.version) == WRONG else "not looked at on this version"
        cure = f"{one.kind}, {'applied' if one.id in applied else 'not applied'}" if one.kind == "shim" else one.kind
        yield Diagnosis("defect", f"{one.folder.name} ({one.package} {one.version}): {state}; {cure}")
