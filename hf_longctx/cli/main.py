"""`hf-longctx`: each command parses, calls one library function and prints. Slow imports happen inside."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from ..storage.files import claimed
from . import clip as cli_clip
from .ask import ask
from .eval import evaluate
from .generate import generate
from .lm_eval import lm_eval
from .options import (
    ChunkSize,
    Device,
    Dtype,
    Force,
    MethodName,
    Model,
    Sample,
    Settings,
    chosen_of,
    complain,
    dtype_of,
    load_model,
    method_of,
    notes,
    reader_on,
    sampling,
)
from .plan import plan
from .report import report

_out = Console()
# What a user can cause: wrong values, missing files, a full disk, an extra that is not installed, an unsupported model.
_USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)


class _Commands(TyperGroup):
    """Turns what the user can mend into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        from ..console.progress import bars_as_lines

        try:
            with bars_as_lines():
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


@app.command("methods")
def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Everything about them, for programs.")] = False,
) -> None:
    """List the methods there are: when to use each, what it cannot do, what it costs."""
    from ..registry import entries

    found = entries().values()
    if as_json:
        typer.echo(json.dumps(list(found), indent=2))
        return
    for entry in found:
        given = {key: value["default"] for key, value in entry["settings"].items()}
        settings = ", ".join(key if default is None else f"{key}={default}" for key, default in given.items())
        lines = {"Does": entry["summary"], **entry["guidance"], "Settings": settings, "Paper": entry["paper"]}
        table = Table(box=None, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")  # an address is not cut on a narrow terminal
        for label, text in lines.items():
            if text:
                table.add_row(label, Text(text))
        _out.print(f"[bold]{entry['name']}[/bold]  hf_longctx.{entry['class']}", highlight=False)
        _out.print(table)
        _out.print()


@app.command()
def kernels(
    dtype: Dtype = "auto",
    device: Device = None,
    chunk: Annotated[int, typer.Option(min=16, help="Queries of a chunk, tokens.")] = 2048,
    head_dim: Annotated[int, typer.Option(min=8, help="Dims of a head.")] = 128,
) -> None:
    """Show which attention kernel does which work on this machine, timed here."""
    from ..console.progress import Progress
    from ..hub.resolve import default_device, usable_device
    from ..ops.kernels.table import table

    where = default_device() if device is None else usable_device(device)
    shown = Table(title=f"{where}: milliseconds; the kernel that is used is marked")
    for name in ("work", "kernel", "ms"):
        shown.add_column(name, justify="right" if name == "ms" else "left", overflow="fold")
    half = where.type == "cuda" and dtype == "auto"
    kind = dtype_of("bfloat16" if half else "float32" if dtype == "auto" else dtype)
    with Progress("kernels timed", console=_out) as progress:
        for row in table(where, kind, chunk=chunk, head_dim=head_dim):
            progress.advance(row.milliseconds is not None)
            if row.refused is None:
                text = "–" if row.milliseconds is None else f"{row.milliseconds:.2f}"
                taken = "by name" if row.by_name else text
                shown.add_row(row.work, row.kernel + (" *" if row.chosen else ""), taken)
    _out.print(shown)


@app.command()
def extend(
    model: Model,
    method: Annotated[str, typer.Option(help="A name from `hf-longctx methods`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the extended model.", show_default=False)],
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Save a model so that plain from_pretrained loads it with the method active."""
    from ..hub import extend as run

    chosen = chosen_of(method, settings)
    assert chosen is not None
    folder = run(model, chosen, out, overwrite=force)
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # to be copied, paths whole
    _out.print(f"Saved the model with {chosen!r} to {folder}.", **plain)
    configs = [file.read_text(encoding="utf-8") for file in folder.glob("*config.json")]  # or an adapter's
    keyed = any('"hf_longctx"' in text for text in configs)
    needed = "import hf_longctx; " if keyed else ""
    _out.print(f'Load it with: {needed}AutoModelForCausalLM.from_pretrained("{folder}")', **plain)


app.command()(generate)
app.command()(ask)


@app.command()
def chat(
    model: Model,
    method: MethodName = None,
    settings: Settings = None,
    system: Annotated[str | None, typer.Option(help="What the conversation begins with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    prefill_chunk_size: ChunkSize = None,
    sample: Sample = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Talk for as long as you like: a turn costs the same however long the conversation is."""
    chosen = method_of(method, settings)
    from ..streaming.chat import Chat, converse

    loaded, tokenizer = load_model(model, dtype, device)
    talk = Chat(reader_on(loaded, chosen, prefill_chunk_size), tokenizer, system)
    converse(talk, notes(), max_new_tokens=max_new_tokens, **sampling(sample))


app.command("eval")(evaluate)
app.command("lm-eval")(lm_eval)
app.command()(report)
app.command()(plan)


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

        run(out, short=short, console=_out)


if __name__ == "__main__":
    app()
