"""The command line of a stage of the recipe."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.long_writer.settings import DEFAULT, read_config
from recipes.outs import new_file, new_folder


def parser(description: str | None, *, file: str | None = None) -> argparse.ArgumentParser:
    """The arguments of every command of the recipe; `file`: what --out is by default, where it is no folder."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--config", type=Path, default=DEFAULT)
    found.add_argument("--variant", help="one of the config's variants, such as s_l_alone, or several joined by +")
    found.add_argument("--model", help="a folder, a Hub id or a .gguf file, in place of the config's")
    found.add_argument("--chats", action="append", help="a file of chats, in place of the config's; may be repeated")
    if file is None:
        found.add_argument("--out", type=new_folder, help="a folder, in place of the config's")
    else:
        found.add_argument("--out", type=new_file, default=file, help=f"the result file; {file} by default")
    found.add_argument("--minutes", type=float, help="after which it ends")
    return found


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The config that the arguments ask for; SystemExit for one that cannot work."""
    try:
        if args.minutes is not None and not 0 < args.minutes < math.inf:
            raise ValueError(f"--minutes {args.minutes:g}: expected a number above 0.")
        out = None if args.out is None else str(args.out)
        return read_config(args.config, args.variant, model=args.model, chats=args.chats, out=out)
    except (ValueError, OSError) as error:
        print(f"--config {args.config}: {error.strerror}." if isinstance(error, OSError) else error, file=sys.stderr)
        raise SystemExit(2) from None


def command(description: str | None, train: Callable[..., dict[str, Any]]) -> None:
    """Run a training as its arguments say, and print what its report has beside the steps."""
    found = parser(description)
    found.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = found.parse_args()
    seconds = None if args.minutes is None else 60 * args.minutes
    report = train(settings(args), seconds=seconds, resume=args.resume)
    print(json.dumps({key: value for key, value in report.items() if key != "logs"}, indent=2))
