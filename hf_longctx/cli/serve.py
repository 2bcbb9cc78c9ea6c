"""`hf-longctx serve`: transformers' OpenAI-compatible server, for models that carry a method."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from .options import notes

# transformers' options are taken as they are, which needs transformers: not before this command is called
PASSED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
MODEL = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hub id, a .gguf file, or smollm2-135m-instruct. Without one, each request names its model.",
    ),
]


def serve(context: typer.Context) -> None:
    """Serve a model with its method over HTTP, with the options of `transformers serve` (the extra serve)."""
    from ..hub.serve import options
    from ..hub.serve import serve as run

    def command(**given: Any) -> None:
        run(given.pop("force_model"), say, **given)

    taken = options()
    first, *others = taken.parameters.values()
    parameters = [first.replace(annotation=MODEL), *others]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = serve.__doc__
    inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    inner.command()(command)
    parser = typer.main.get_command(inner)
    with parser.make_context(context.info_name, list(context.args), parent=context.parent) as made:
        parser.invoke(made)


def say(line: str) -> None:
    """Print a line to stderr, however wide."""
    notes().print(line, highlight=False, markup=False, soft_wrap=True)
