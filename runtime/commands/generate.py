"""Work of the command `run`: checks the prompts against the plan, loads the engine, and prints outputs as they come."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plans.check import load
from plans.process import answered
from plans.schema import Plan
from plans.terminal import err, out
from runtime.chat.template import ChatTemplate, Turn
from runtime.commands import placement, report
from runtime.commands.loading import Status, load_engine, stderr_status
from runtime.commands.options import to_stderr
from runtime.commands.prompts import Conversation, Prompt, read_prompts, typed_lines
from runtime.errors import MachineError, RequestError
from runtime.image.verify import check_images
from runtime.processes.torchrun import Torchrun, interface_towards
from runtime.request import GenerateOptions, Piece, check_stops, make_request
from runtime.text import TOKENIZER_FILE, encode, load_tokenizer

if TYPE_CHECKING:
    from runtime.engine import Engine, Stream
    from runtime.generation import Generation


def run(
    directory: Path,
    *,
    texts: tuple[str, ...],
    token_ids: tuple[str, ...],
    chat: bool,
    system: str | None,
    interactive: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    verify: bool,
    options: GenerateOptions,
) -> None:
    """Run the command; raises what ``Engine.open`` and ``Engine.stream`` raise."""
    plan = load(directory)
    torchrun = started_by_torchrun(plan, directory)
    if torchrun is None:
        check_images(plan, directory, verify=False)  # before anything else is asked of the plan
    _check_options(directory, options, chat=chat, system=system)
    conversation = Conversation(
        template=ChatTemplate(directory) if chat else None,
        turns=[Turn(role="system", content=system)] if system is not None else [],
    )
    output = Output(plan, directory, torchrun, as_json=as_json, verbose=verbose)
    if interactive:
        if torchrun is not None or as_json or texts or token_ids:
            raise RequestError("--interactive: not with --prompt, --prompt-ids, --json or torchrun")
        if sys.stdin is None:
            raise RequestError("--interactive: stdin is closed")
        load_tokenizer(directory)
        output.plan()
        with (
            stderr_status(quiet=quiet, torchrun=None) as status,
            load_engine(plan, directory, status, verify=verify) as engine,
        ):
            status.end("ready")
            output.loaded(engine)
            _interact(engine, options, conversation, output)
        return
    prompts = read_prompts(directory, texts, token_ids, conversation, torchrun)
    requests = [make_request(plan, prompt.ids, options) for prompt in prompts]
    output.plan()
    with (
        stderr_status(quiet=quiet, torchrun=torchrun) as status,
        load_engine(plan, directory, status, torchrun=torchrun, verify=verify) as engine,
    ):
        if len(requests) > 1:
            status("decoding")
            generations = engine.serve_batch(requests)
            status.end("done")
            output.loaded(engine)
            output.batch(prompts, generations, engine)
        else:
            tokens = len(requests[0].prompt_ids)
            status(f"reading the prompt of {tokens} token{'s' if tokens > 1 else ''}")
            output.stream(engine.serve(requests[0]), engine, status)


def _check_options(directory: Path, options: GenerateOptions, *, chat: bool, system: str | None) -> None:
    """Raise RequestError for options that make no sense together, or without a tokenizer."""
    check_stops("--stop", tuple(options["stop"] or ()))
    if options["stop"]:
        load_tokenizer(directory)
    if system is not None and not chat:
        raise RequestError("--system: only with --chat")


def started_by_torchrun(plan: Plan, directory: Path) -> Torchrun | None:
    """Return the rank that torchrun gave this process; None where it did not start it. Raises MachineError."""
    torchrun = Torchrun.of(os.environ)
    if torchrun is None:
        return None
    if torchrun.world != len(plan.devices):
        raise MachineError(
            f"{directory}: torchrun started {torchrun.world} processes, the plan has {len(plan.devices)} devices: "
            "start one process per device"
        )
    interface = interface_towards(torchrun.host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return torchrun


def _interact(engine: "Engine", options: GenerateOptions, conversation: Conversation, output: "Output") -> None:
    """Answer lines of stdin until it ends; each prompt is all that was said so far, most of it in the KV caches."""
    options = options | GenerateOptions(reuse=True)
    context: tuple[int, ...] = ()
    for line in typed_lines():
        try:
            ids = (
                conversation.ids(engine.tokenizer.backend, line)
                if conversation.template is not None
                else (*context, *encode(engine.tokenizer.backend, line, special=not context))
            )
            stream = engine.stream(ids, **options)
        except RequestError as error:
            err(f"error: {error}")
            continue
        with answered(signal.SIGINT, lambda number, frame: engine.stop()):  # the answer ends, not the conversation
            result = output.text(stream, engine)
        conversation.turns.extend([Turn(role="user", content=line), Turn(role="assistant", content=result.text)])
        context = (*ids, *result.tokens)


class Output:
    """Printer of `run`: outputs on stdout, as text or JSON; labels, figures and memory on stderr.

    Under torchrun only rank 0 prints.
    """

    def __init__(self, plan: Plan, directory: Path, torchrun: Torchrun | None, *, as_json: bool, verbose: int) -> None:
        self._plan, self._directory = plan, directory
        self._rank = 0 if torchrun is None else torchrun.rank
        self._here = [device.id for device in plan.devices]
        if torchrun is not None:
            self._here = [self._here[torchrun.rank]]
        self._silent, self._as_json, self._verbose = self._rank > 0, as_json, verbose
        self._as_text = (directory / TOKENIZER_FILE).is_file()

    def plan(self) -> None:
        """Print the placement with -v, and each tensor of the devices of this process with -vv."""
        if self._verbose and not self._silent:
            to_stderr(placement.plan_lines(self._plan, [device.id for device in self._plan.devices]))
        if self._verbose > 1:
            to_stderr(placement.tensor_lines(self._plan, self._directory, self._here))

    def loaded(self, engine: "Engine") -> None:
        """Print the devices of this process, with their memory before and after loading, with -v."""
        if self._verbose:
            to_stderr(report.device_lines(self._plan, engine.started, self._rank))

    def stream(self, stream: "Stream", engine: "Engine", status: Status) -> None:
        """Print the output of the only prompt; the status ends with its first piece."""
        first = next(stream, None)
        status.end("first token")
        if self._verbose and not self._silent:
            to_stderr([report.start_line(status.begun, report.process_age_s())])
        self.loaded(engine)
        if self._silent or self._as_json:
            result = stream.finished()
            if not self._silent:
                out(json.dumps(dataclasses.asdict(result)))
            self._after(engine, result)
            return
        if first is not None:
            self._piece(first)
        self.text(stream, engine)

    def text(self, stream: "Stream", engine: "Engine") -> "Generation":
        """Print an output as it comes, and then its figures."""
        for piece in stream:
            self._piece(piece)
        out()
        result = stream.finished()
        self._figures(result)
        self._after(engine, result)
        return result

    def batch(self, prompts: list[Prompt], generations: list["Generation"], engine: "Engine") -> None:
        """Print outputs that were decoded together: one object of all, or each behind the label of its prompt."""
        if self._silent:
            return
        if self._as_json:
            out(json.dumps({"generations": [dataclasses.asdict(result) for result in generations]}))
            return
        for number, (prompt, result) in enumerate(zip(prompts, generations, strict=True), 1):
            err(f"--- prompt {number} of {len(prompts)}: {prompt.label}")
            out(result.text if self._as_text else " ".join(map(str, result.tokens)))
            self._figures(result)
        self._after(engine, generations[-1])

    def _piece(self, piece: Piece) -> None:
        out(piece if self._as_text else "".join(f"{token} " for token in piece.tokens), end="")

    def _figures(self, result: "Generation") -> None:
        if self._verbose:
            to_stderr(report.acceptance_lines(result))
        err(report.summary(result))

    def _after(self, engine: "Engine", result: "Generation") -> None:
        """Print the memory of the plan, term by term, and of the devices of this process after the run, with -v."""
        if self._verbose:
            if not self._silent:
                to_stderr(report.memory_lines(result))
            to_stderr(report.after_lines(self._plan, engine.completions, self._rank))
