"""The machine, its kernels and why not, and how the Hub is reached."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from urllib.parse import urlsplit

import torch

from ..evaluation.results import environment
from ..ops.kernels.table import KernelRow, table
from .diagnosis import Diagnosis

PUBLIC = "huggingface.co"


def machine() -> Iterator[Diagnosis]:
    """Versions of hf_longctx and Python, processor and accelerators."""
    here = environment("cpu")
    version = here["versions"]["hf_longctx"]
    commit = here["commit"] if " " not in here["commit"] else "no checkout"
    system = f"{platform.system()} {platform.machine()}"
    yield Diagnosis("hf_longctx", f"{version} ({commit[:12]}{'-dirty' if commit.endswith('dirty') else ''})")
    yield Diagnosis("machine", f"Python {platform.python_version()}, {system}, {here['hardware']}")
    count = torch.cuda.device_count()
    cards = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    yield Diagnosis("GPU", f"{count}: {', '.join(cards)}" if count else "none that torch sees")


def kernels() -> Iterator[Diagnosis]:
    """Each kernel of attention: whether it does any of the work of a method here, or the reason."""
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    rows: dict[str, list[KernelRow]] = {}
    for row in table(device, dtype, chunk=2048, heads=(8, 2), timed=False):
        rows.setdefault(row.kernel, []).append(row)
    for name, found in rows.items():
        yield Diagnosis(f"kernel {name}", _told(found))


def _told(rows: list[KernelRow]) -> str:
    chosen = [row.work for row in rows if row.chosen]
    if chosen:
        return f"chosen for {len(chosen)} of {len(rows)} kinds of work"
    reasons = list(dict.fromkeys(row.refused for row in rows if row.refused))
    if len(reasons) and all(row.refused for row in rows):
        return f"no: {reasons[0]}"
    return "by its name only" if rows[0].by_name else "yes, where no other is chosen"


def hub() -> Iterator[Diagnosis]:
    """The endpoint, and whether there is a token; neither a private host's name nor the token."""
    from huggingface_hub import constants, get_token

    host = urlsplit(constants.ENDPOINT).hostname
    where = PUBLIC if host == PUBLIC else "another one than huggingface.co (HF_ENDPOINT)"
    token = "yes" if get_token() else "no"
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    cache = "" if os.path.isdir(constants.HF_HUB_CACHE) else ", nothing cached yet"
    yield Diagnosis("Hub", f"endpoint {where}, token: {token}{offline}{cache}")
