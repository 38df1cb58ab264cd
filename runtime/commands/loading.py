"""Loading of the engine for a command, and the line on stderr that says what it is doing until the output begins."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from plans.format import format_s
from plans.process import ended_by_ctrl_c
from plans.quantized import has_codes
from plans.schema import Plan
from plans.terminal import printable
from runtime.commands.options import load_torch_module
from runtime.processes.torchrun import Torchrun

if TYPE_CHECKING:
    from runtime.engine import Engine

QUIET_S = 1.0
"""Seconds before the first line where stderr is no terminal: a command that is fast prints none."""


class Status:
    """Current phase of a command: one line on a terminal, which goes away, elsewhere a line for each later phase.

    It needs no thread, so that processes can be forked meanwhile.
    """

    def __init__(self, console: Console | None, clock: Callable[[], float] = time.monotonic) -> None:
        """``console``: where stderr goes; None shows nothing."""
        self._console, self._clock = console, clock
        self._begin = clock()
        self.begun: list[tuple[str, float]] = []
        """Each phase with the seconds from the first moment to its beginning; at the end the result, likewise."""
        self._shown = False
        self._live: Live | None = None
        if console is not None and console.is_terminal:
            self._live = Live(console=console, transient=True, auto_refresh=False)
            self._live.start()
            console.show_cursor(True)  # nothing brings it back where the process ends at once

    def __call__(self, phase: str) -> None:
        """Show that a phase begins; a phase that has begun is not shown twice."""
        if phase in (begun for begun, _ in self.begun):
            return
        self.begun.append((phase, self._clock() - self._begin))
        if self._live is not None:
            self._live.update(Text(f"{printable(phase)} ..."), refresh=True)
        elif self._clock() - self._begin >= QUIET_S:
            self._line(f"{phase} ...")

    def end(self, result: str) -> None:
        """Show no more; where lines were shown, ``result`` is the last one."""
        self.begun.append((result, self._clock() - self._begin))
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._shown:
            self._line(f"{result} in {format_s(self._clock() - self._begin)}")
        self._shown, self._console = False, None

    def _line(self, text: str) -> None:
        if self._console is not None:
            self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def stderr_status(*, quiet: bool, torchrun: Torchrun | None) -> Status:
    """Return the status of a command on stderr; of the processes of torchrun only rank 0 shows one."""
    shown = not quiet and (torchrun is None or torchrun.rank == 0)
    return Status(Console(stderr=True) if shown else None)


def load_engine(
    plan: Plan, directory: Path, status: Status, *, torchrun: Torchrun | None = None, verify: bool = True
) -> "Engine":
    """Import torch and load a plan that was read from a directory, showing each phase."""
    status("loading torch")
    engine: Any = load_torch_module("runtime.engine").Engine
    if any(device.kind == "cpu" for device in plan.devices):
        ops = load_torch_module("runtime.model.ops")
        status(ops.KERNELS)
        dtype = load_torch_module("runtime.image.dtypes").DTYPES[plan.options.dtype]
        with ended_by_ctrl_c():  # the compiler calls back functions whose errors Python ignores; no rank runs yet
            ops.prepare(dtype, codes=has_codes(plan.model), kv_dtype=plan.options.kv_dtype, report=status)
    loaded: Engine = engine.load(plan, directory, torchrun=torchrun, method="fork", verify=verify, report=status)
    return loaded
