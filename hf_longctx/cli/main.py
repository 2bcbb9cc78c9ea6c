"""`hf-longctx`: each command parses, calls one library function and prints. Slow imports happen inside."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..storage.files import claimed
from ..storage.secrets import is_argument_with_token
from . import clip as cli_clip
from . import hub as cli_hub
from . import options
from . import patches as cli_patches
from .ask import ask
from .calibrate import calibrate
from .card import card
from .chat import chat
from .doctor import doctor
from .eval import evaluate
from .extend import extend
from .generate import generate
from .kernels import kernels
from .lm_eval import lm_eval
from .methods import list_methods
from .options import complain
from .plan import plan
from .plan_train import PlanCommand
from .push import push
from .report import report
from .save import save
from .serve import PASSED_ON, serve
from .train_check import train_check

# What a user can cause: wrong values, missing files, a full disk, an extra that is not installed, an unsupported model.
_USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """End as after an error when the system or a closed terminal asks to: temporary folders are removed."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    stock = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names]
        # not where it is ignored (nohup)
        stock = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in stock.items():
            signal.signal(number, handler)


class _Commands(TyperGroup):
    """Turns what the user can mend into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(map(is_argument_with_token, args)):  # before a message about arguments shows it
            complain(
                "a token among the arguments: everyone on this machine can read them. Give --token-file FILE, set "
                "HF_TOKEN, or run `hf auth login` once. A token that was shown should be replaced."
            )
            raise typer.Exit(2)
        if empty := options.place_without_a_name(args):
            complain(f"{empty} is empty: expected a path. (A shell's variable that is not set gives nothing.)")
            raise typer.Exit(2)
        try:
            os.getcwd()
        except FileNotFoundError:  # torch's libraries would end the process, and paths say no more than "no such file"
            complain("the current folder was deleted. Change into one that exists (cd), and run again.")
            raise typer.Exit(2) from None
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        from ..console.progress import bars_as_lines

        try:
            with bars_as_lines(), stopped_in_order():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            complain(str(stop) or "interrupted")
            raise typer.Exit(130) from None
        except Exception as raised:
            # a document that cannot be read is told as its reader tells it, without the stream around it
            cause = raised.__cause__ if type(raised).__name__ == "SourceError" else None
            error = cause if isinstance(cause, _USER_ERRORS) else raised
            # out of memory is a RuntimeError of torch's, which is not imported for --help
            if not isinstance(error, _USER_ERRORS) and type(error).__name__ != "OutOfMemoryError":
                raise
            if ctx.params.get("debug"):
                raise
            told = " ".join(str(error).split()) or type(error).__name__
            told = re.sub(r"^\[Errno \d+\] ", "", told)
            if isinstance(error, RuntimeError) and "hf-longctx plan" not in told:  # out of memory
                told += " Take a smaller window, chunk or batch; `hf-longctx plan` says what fits."
            complain(told)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Read far beyond the length a Hugging Face model was trained for.",
)
app.add_typer(cli_clip.app, name="clip")
app.add_typer(cli_hub.app, name="hub")
app.add_typer(cli_patches.app, name="patches")


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        others = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "torch"))
        typer.echo(f"hf-longctx {__version__} ({others}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    """Read far beyond the length a Hugging Face model was trained for."""


app.command("methods")(list_methods)
app.command()(kernels)
app.command()(doctor)
app.command()(extend)
app.command()(save)
app.command()(card)
app.command()(push)
app.command()(generate)
app.command()(ask)
app.command()(chat)
app.command(context_settings=PASSED_ON)(serve)


app.command("eval")(evaluate)
app.command("lm-eval")(lm_eval)
app.command()(report)
app.command(cls=PlanCommand, epilog="hf-longctx plan train: the same for a training step.")(plan)
app.command("train-check")(train_check)
app.command()(calibrate)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figure, the numbers and the extended model.")] = Path(
        "demo-out"
    ),
    short: Annotated[bool, typer.Option("--short", help="Tiny lengths, under a minute: does it run at all?")] = False,
) -> None:
    """The main job on a real, small model: measure, draw, save, load again and ask about a long document."""
    with claimed(out, "--out"):
        from .demo import run

        run(out, short=short, console=options.screen)


if __name__ == "__main__":
    app()
