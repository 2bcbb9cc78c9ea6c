"""Result files: what was measured, with what, on what.

A file is `{"command", "commit", "hardware", "versions", "model", "date", "rows": [...]}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..storage.files import write_whole


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """`commit`, `hardware` and `versions` of this run.

    Args:
        device: Where the model is; a GPU if there is one otherwise. The commit is that of the checkout this package is
            imported from, with "-dirty" when it was edited; outside a checkout it is the package's version. The
            environment's HF_LONGCTX_COMMIT, for copies of a checkout, comes before both.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()}, {os.cpu_count()} cores"
    version = package_version()
    versions = {"hf_longctx": version, "torch": torch.__version__, "transformers": metadata.version("transformers")}
    versions["python"] = platform.python_version()
    return {"commit": _commit() or f"hf_longctx {version}", "hardware": hardware, "versions": versions}


def result_file(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str,
    command: str | None = None,
    device: torch.device | str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A whole result file as a dictionary. `command` is this process's own by default; `more` are further keys."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if command is None else command
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"command": command, **environment(device), "model": model, "date": date, **more, "rows": list(rows)}


def write_results(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a result file so that a reader sees the old one or the new one, never half of it. See `write_whole`."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def package_version() -> str:
    """Version of the package that runs, installed or imported from a bare folder."""
    from .. import __version__

    return __version__


def _commit() -> str | None:
    if given := os.environ.get("HF_LONGCTX_COMMIT"):
        return given
    root = Path(__file__).resolve().parents[2]
    # a package in site-packages may lie inside the checkout of another project
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
