"""Work of the command `serve`: checks its options, listens, and serves until it is ended."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from plans.check import load
from plans.files import read_inside
from plans.format import quote
from plans.schema import Plan
from plans.terminal import err
from runtime.commands import placement
from runtime.commands.options import load_torch_module_in_thread, to_stderr
from runtime.errors import RequestError
from runtime.image.verify import check_images
from runtime.processes import fork_server
from runtime.processes.torchrun import Torchrun
from runtime.serve.server import run
from runtime.serve.settings import Settings, is_loopback
from runtime.text import TOKENIZER_FILE

if TYPE_CHECKING:
    from runtime.engine import Engine

MOST_KEY = 4096
"""Most characters of a key."""
MOST_NAME = 200
"""Most characters of a model's name."""
BACKLOG = 256


def serve(
    directory: Path,
    *,
    host: str,
    port: int,
    api_key_file: Path | None,
    model_name: str | None,
    queue: int,
    verify: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Run the command; raises what ``Engine.open`` raises, and PeerError."""
    plan = load(directory)
    if Torchrun.of(os.environ) is not None:
        raise RequestError("serve: not under torchrun: the server starts the ranks of its host itself")
    check_images(plan, directory, verify=False)
    if not (directory / TOKENIZER_FILE).exists():
        raise RequestError(f"{directory / TOKENIZER_FILE}: not there, so the server cannot read or answer with text")
    name = directory.resolve().name if model_name is None else model_name
    if not name.isprintable() or not 0 < len(name) <= MOST_NAME:
        raise RequestError(f"--model-name: found {quote(name)}, expected 1 to {MOST_NAME} printable characters")
    key = None if api_key_file is None else read_key(api_key_file)
    listener = _listen(host, port)
    with listener:
        if not quiet and key is None and not is_loopback(host):
            err(f"warning: everyone who reaches {host} may use this server: --api-key-file asks for a key")
        if verbose:
            to_stderr(_placed(plan, directory, verbose))
        report = (lambda line: None) if quiet else err
        run(
            Settings(plan=plan, directory=directory, model=name, host=host, key=key, queue=queue),
            listener,
            lambda: _engine(plan, directory, report, verify=verify),
            report,
        )


def read_key(file: Path) -> str:
    """Return the key that is the only line of a file; raise RequestError for any other file.

    Prints a warning where other users can read it.
    """
    try:
        content = read_inside(file.parent, file.name, MOST_KEY + 2)
        others = file.stat().st_mode & 0o004
    except OSError as error:
        raise RequestError(f"--api-key-file {file}: cannot be read: {error.strerror}") from error
    key = content.decode("ascii", "replace").strip("\r\n")
    if not 0 < len(key) <= MOST_KEY or not all("!" <= character <= "~" for character in key):
        raise RequestError(
            f"--api-key-file {file}: expected one line of 1 to {MOST_KEY} printable ASCII characters without spaces"
        )
    if others:
        err(f"warning: {file}: every user of this machine can read the key: chmod 600 {file}")
    return key


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise RequestError where the address is not to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or reason
        raise RequestError(f"--host {quote(host)} --port {port}: cannot listen: {reason}") from error


def _engine(plan: Plan, directory: Path, report: Callable[[str], object], *, verify: bool) -> "Engine":
    """Import torch and load the plan, in a thread, while the server says that it is loading."""
    report("loading torch")
    # a fork server, because a process with threads and connections is not to be forked
    if len(plan.devices) > 1:
        with suppress(OSError):  # the ranks then cannot be started either, and that is refused
            fork_server.start()
    engine: Engine = load_torch_module_in_thread("runtime.engine").Engine.load(
        plan, directory, verify=verify, report=report
    )
    return engine


def _placed(plan: Plan, directory: Path, verbose: int) -> list[str]:
    """Return the placement, and with -vv each tensor."""
    devices = [device.id for device in plan.devices]
    lines = list(placement.plan_lines(plan, devices))
    return [*lines, *placement.tensor_lines(plan, directory, devices)] if verbose > 1 else lines
