"""`python -m hf_longctx`: the command line where the script `hf-longctx` is not on the path."""

from .cli.main import app

if __name__ == "__main__":
    app(prog_name="hf-longctx")
