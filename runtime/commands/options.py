"""What several commands take."""

from pathlib import Path

import click

PLAN = click.argument("directory", metavar="PLAN", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
