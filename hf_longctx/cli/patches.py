"""`hf-longctx patches`: defects of transformers and its kin, whether they are present, and copies without them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import options

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Upstream defects that long texts meet, and their cures."
)
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Numbers or names; all by default.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
To = Annotated[Path, typer.Option("--to", help="The folder of the copies.")]
FOLDER = Path("hf-longctx-patched")


@app.command("list")
def list_patches(as_json: Json = False) -> None:
    """List the defects: what was seen with the installed versions, and what can be done."""
    from ..upstream.ledger import KINDS, defects

    rows = [
        {
            "id": one.id,
            "package": one.package,
            "version": one.version,
            "seen": one.seen.get(one.version, "not looked at"),
            "kind": one.kind,
            "title": one.title,
        }
        for one in defects().values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(title="seen: with the version that is installed here")
    for name in ("id", "package", "seen", "kind", "title"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row["id"], f"{row['package']} {row['version']}", row["seen"], row["kind"], Text(row["title"]))
    options.screen.print(table)
    for kind, meaning in KINDS.items():
        options.plain(f"{kind}: {meaning}")


@app.command()
def check(ids: Ids = None, as_json: Json = False) -> None:
    """Run the scripts that show the defects, on tiny models; exit code 1 if one is present."""
    from ..console.progress import Progress
    from ..upstream.ledger import WRONG, chosen
    from ..upstream.scripts import attempt

    wanted = chosen(ids or None)
    rows = []
    with Progress("defects looked for", total=len(wanted), console=options.screen) as progress:
        for one in wanted:
            found = attempt(one)
            rows.append(
                {"id": one.id, "package": one.package, "version": one.version, "state": found.state, "told": found.told}
            )
            progress.advance(1)
            if not as_json:
                told = f": {found.told}" if found.told else ""
                options.plain(f"{one.id} {one.package} {one.version} {found.state}{told}")
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    if any(row["state"] == WRONG for row in rows):
        raise typer.Exit(1)


@app.command()
def apply(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Numbers or names.")], to: To = FOLDER
) -> None:
    """Copy the packages at fault into a folder, without these defects. What is installed stays as it is."""
    from ..console.progress import Progress
    from ..upstream.patched import apply_changes

    with Progress("copies made and looked at", total=1, console=options.screen) as progress:
        numbers = apply_changes(ids, to)
        progress.advance(1)
    path = shlex.quote(str(to.resolve()))
    options.plain(f"{to} has the changes of {', '.join(numbers)}. Use it with: PYTHONPATH={path} python ...")


@app.command()
def undo(ids: Ids = None, to: To = FOLDER) -> None:
    """Take changes out of such a folder, in any order; without an ID, remove the folder."""
    from ..upstream.patched import changes_in, undo_changes

    if not changes_in(to):
        raise ValueError(
            f"{to}: expected a folder of `hf-longctx patches apply`, and there is none. Name it with --to."
        )
    left = undo_changes(ids or None, to)
    options.plain(f"{to} has the changes of {', '.join(left)}." if left else f"{to} is removed.")
