"""The chat template of a plan's tokenizer: a renderer process, started when the template is loaded."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plans.files import read_inside
from runtime.errors import RequestError
from runtime.special_tokens import CONFIG_FILE, MAP_FILE, MOST_CONFIG_BYTES

TEMPLATE_FILE = "chat_template.jinja"
MOST_TEMPLATE_BYTES = 1 << 20
MOST_ANSWER_BYTES = 64 << 20
"""Longest answer of the renderer, which bounds the text that it holds."""
MOST_CPU_S = 5
"""Processor time of the renderer for one answer."""
MOST_WAIT_S = 30.0
"""Longest wait for an answer; the renderer's own limit of processor time comes first, unless the template sleeps."""
MISSING = "missing"
"""Reason of the renderer where there is no template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    """Name of who says it; None: the template sees no such field."""
    tool_call_id: str | None = None
    """Call that a tool answers; None: the template sees no such field."""


class TemplateMissing(RequestError):
    """A tokenizer without a chat template."""


class ChatTemplate:
    """Chat template of a plan's tokenizer. The renderer ends with it; it may be used from several threads.

    A renderer that took too much time or memory for a conversation has ended; the next one gets another renderer.
    """

    def __init__(self, directory: Path) -> None:
        """Load the template; raise RequestError where it cannot be read within the limits, TemplateMissing where there
        is none."""
        self._config_file = directory / CONFIG_FILE
        self._config, self._map = (_read(directory / name, MOST_CONFIG_BYTES) for name in (CONFIG_FILE, MAP_FILE))
        self._source = _read(directory / TEMPLATE_FILE, MOST_TEMPLATE_BYTES)
        self._template_place = (
            f"{self._config_file}: chat_template" if self._source is None else str(directory / TEMPLATE_FILE)
        )
        self._one = threading.Lock()
        """Held by the thread that talks to the renderer."""
        self._start()

    def _start(self) -> None:
        program = Path(__file__).with_name("renderer.py")
        # -P keeps the program's own directory out of its module path; a session of its own gets no Ctrl-C.
        self._renderer = subprocess.Popen(
            [sys.executable, "-P", str(program), str(MOST_CPU_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._renderer)
        self._ask({"config": self._config, "map": self._map, "source": self._source})

    def render(self, turns: Sequence[Turn], *, generation_prompt: bool = True) -> str:
        """Return the text of a conversation; raise RequestError.

        ``generation_prompt``: up to where the model's next turn begins, else to the end of the last turn.
        """
        messages = [{name: text for name, text in asdict(turn).items() if text is not None} for turn in turns]
        with self._one:
            if not self._end.alive:
                self._start()
            text: str = self._ask({"messages": messages, "add_generation_prompt": generation_prompt})["text"]
        return text

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the renderer to a message; raise RequestError with the reason of a refusal."""
        line = _exchange(self._renderer, f"{json.dumps(message)}\n".encode())
        if line is None:
            self._end()
            raise RequestError(f"{self._template_place}: {_ending(self._renderer)}")
        answer: dict[str, Any] = json.loads(line)
        reason = answer.get("error")
        if reason == MISSING:
            raise TemplateMissing(
                f"{self._config_file}: chat_template: missing, and no {TEMPLATE_FILE} beside it: the tokenizer has no "
                "chat template, so prompt without --chat"
            )
        if reason is not None:
            files = {"template": self._template_place, "map": self._config_file.with_name(MAP_FILE)}
            place = files.get(answer["of"], self._config_file)
            raise RequestError(f"{place}: {reason}")
        return answer


def _read(file: Path, most: int) -> str | None:
    """Return the text of a file; None where there is none. Raises RequestError."""
    try:
        return read_inside(file.parent, file.name, most).decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file}: cannot be read: {error}") from error


def _exchange(renderer: subprocess.Popen[bytes], message: bytes) -> bytes | None:
    """Send a line and return the line that answers it; None where the renderer ends, is late or says too much."""
    assert renderer.stdin is not None and renderer.stdout is not None  # noqa: PT018
    sink, source = renderer.stdin.fileno(), renderer.stdout.fileno()
    os.set_blocking(sink, False)
    rest, answer, deadline = memoryview(message), bytearray(), time.monotonic() + MOST_WAIT_S
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        readable, writable, _ = select.select([source], [sink] if rest else [], [], max(0.0, left))
        if not readable and not writable:
            return None
        try:
            if writable:
                rest = rest[os.write(sink, rest) :]
        except BrokenPipeError:
            return None
        if readable:
            piece = os.read(source, 1 << 20)
            answer += piece
            if not piece or len(answer) > MOST_ANSWER_BYTES:
                return None
    return bytes(answer)


def _ending(renderer: subprocess.Popen[bytes]) -> str:
    """Return why a renderer that did not answer has ended."""
    code = renderer.returncode
    if code == -signal.SIGXCPU:
        return "takes too much processor time to compile or render"
    if code == -signal.SIGKILL:
        return f"took more than {MOST_WAIT_S:g} s to compile or render, or too much memory"
    return f"ended the process that compiles and renders it, with {f'signal {-code}' if code < 0 else f'status {code}'}"


def _end(renderer: subprocess.Popen[bytes]) -> None:
    """End a renderer: at the end of its input it ends by itself, unless it computes."""
    for stream in (renderer.stdin, renderer.stdout):
        if stream is not None:
            stream.close()
    try:
        renderer.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        renderer.kill()
        renderer.wait()
