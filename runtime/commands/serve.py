"""The command `serve`: serves a plan over HTTP."""

from importlib.util import find_spec
from pathlib import Path

import click

from runtime.commands.command import Command
from runtime.commands.options import PLAN, QUIET, VERBOSE, Whole, load_module
from runtime.errors import MachineError

NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client")
"""Packages of the optional group ``serve``."""


@click.command(
    "serve",
    short_help="Serve a plan over HTTP, as OpenAI's API and as a page.",
    cls=Command,
    examples=(
        "PROGRAM serve plans/demo",
        "curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\",
        """     -d '{"model": "demo", "prompt": "def f(", "max_tokens": 40, "temperature": 0}'""",
    ),
)
@PLAN
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", metavar="N", type=Whole(0, 65535), default=8000, show_default=True, help="0: any, which is printed."
)
@click.option(
    "--api-key-file", metavar="FILE", type=click.Path(path_type=Path), help="A key in it is asked of every request."
)
@click.option("--model-name", metavar="NAME", help="Name of the model in requests. Default: that of the directory.")
@click.option(
    "--queue",
    metavar="N",
    type=Whole(0, 100_000),
    default=64,
    show_default=True,
    help="Requests that may wait for a place; those beyond are refused with 429.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare images with their digests; sizes are compared anyway.")
@QUIET
@VERBOSE
def serve_command(
    *,
    directory: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    model_name: str | None,
    queue: int,
    no_verify: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Serve a plan over HTTP: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, and a page at /.

    SIGTERM or Ctrl-C: requests that run and wait are served to their end, new ones get 503, and the command ends with
    code 0. A second signal ends it at once with 143 or 130. Where a device fails it ends with 5.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MachineError(f"serve: not installed: {', '.join(missing)}: pip install 'eagleplan[serve]'")
    load_module("runtime.commands.serving").serve(
        directory,
        host=host,
        port=port,
        api_key_file=api_key_file,
        model_name=model_name,
        queue=queue,
        verify=not no_verify,
        quiet=quiet,
        verbose=verbose,
    )
