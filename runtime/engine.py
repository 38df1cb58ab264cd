"""Engine: a plan, loaded on its devices, that serves prompts. The Python interface; the commands use it too.

    with Engine.open("plans/x") as engine:
        for piece in engine.stream("def f(", max_new_tokens=100, temperature=0.7):
            print(piece, end="", flush=True)
        result = engine.generate([1, 2, 3], max_new_tokens=20)

The same engine serves one prompt after the other without loading anything again. A plan of one device runs in the
caller's process and sets its number of torch threads; one of several devices in a process per device, started here.
"""

import os
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Self, Unpack

from plans import codec
from plans.check import load
from plans.schema import Plan
from runtime.continuous import Batching
from runtime.errors import MachineError, RequestError
from runtime.generation import DeviceBytes, Generation
from runtime.image.verify import check_images
from runtime.processes.inbox import Delivery, Submit
from runtime.processes.launch import StartMethod
from runtime.processes.rank_process import Started
from runtime.processes.serving import InProcess, InProcesses, Report, Serving, Session
from runtime.processes.supervisor import CLOSED
from runtime.processes.torchrun import Torchrun
from runtime.request import (
    Completion,
    GenerateOptions,
    Piece,
    Request,
    TokenIds,
    as_python,
    check_options,
    check_request,
    make_request,
)
from runtime.tokenizer import PlanTokenizer

BUSY = "the engine is serving another request: read it to its end, or close its stream"

Prompt = str | TokenIds
"""Text, or token ids, of shape [n] or [1, n]."""


def ignore(phase: str) -> None:
    """Report no phase of loading."""


class Engine:
    """A plan, loaded on all its devices."""

    def __init__(self, plan: Plan, directory: Path, ranks: Serving, *, whole: bool) -> None:
        """``whole``: all ranks are in this process or its children, not each in a program of its own."""
        self.plan, self.directory = plan, directory
        self._ranks, self._whole = ranks, whole
        self._digest = codec.digest(plan)
        self._tokenizer: PlanTokenizer | None = None
        self._current: weakref.ref[Stream] | None = None
        """Weak reference, so that an abandoned stream does not block the engine."""
        self._free, self._closed = threading.Lock(), False
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        torchrun: Torchrun | None = None,
        method: StartMethod = "forkserver",
        verify: bool = True,
    ) -> Self:
        """Load the plan in a directory on its devices.

        ``torchrun``: the rank of this process, where torchrun has started one for each device and all of them run this;
        None: all ranks are started here, on one host. ``method``: how their processes are started; see `Ranks`.
        ``verify``: compare the images with their digests; their sizes and slot tables are compared anyway. Raises
        PlanError, RequestError, MachineError, ImageError or PeerError.
        """
        directory = Path(directory)
        return cls.load(load(directory), directory, torchrun=torchrun, method=method, verify=verify)

    @classmethod
    def load(
        cls,
        plan: Plan,
        directory: Path,
        *,
        torchrun: Torchrun | None = None,
        method: StartMethod = "forkserver",
        verify: bool = True,
        report: Report = ignore,
    ) -> Self:
        """Load a plan that was read from its directory; ``report`` is called with each phase. Raises as ``open``."""
        if len(plan.devices) == 1:
            return cls(plan, directory, InProcess(plan, directory, verify=verify, report=report), whole=True)
        if torchrun is None:
            hosts = sorted({device.host for device in plan.devices})
            if len(hosts) > 1 and any(device.kind != "cpu" for device in plan.devices):
                raise MachineError(f"{directory}: the plan has hosts {', '.join(hosts)}: start it with torchrun")
            check_images(plan, directory, verify=False)
        ranks = InProcesses(plan, directory, method=method, verify=verify, torchrun=torchrun, report=report)
        return cls(plan, directory, ranks, whole=torchrun is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks; the engine serves no more, and whoever is being served gets a RequestError.

        May be called again, from another thread, and from a signal handler. An engine that is dropped is closed, too,
        and so is one that is still open when the interpreter exits. A forked process ends nothing of its parent's.
        """
        if not self._closed:
            self._closed = True
            if (stream := self._open_stream()) is not None:
                stream.abandon(CLOSED)
            self._ranks.close()

    def _open_stream(self) -> "Stream | None":
        stream = None if self._current is None else self._current()
        return None if stream is None or stream.ended else stream

    @property
    def tokenizer(self) -> PlanTokenizer:
        """The tokenizer beside the plan, as users of transformers call one; raise RequestError where there is none."""
        if self._tokenizer is None:
            self._tokenizer = PlanTokenizer(self.directory)
        return self._tokenizer

    @property
    def load_s(self) -> float:
        """Load time of the first rank of this process, in s."""
        return self.started[0].load_s

    @property
    def started(self) -> list[Started]:
        """Device and memory of each rank of this process or its children, in the order of ranks."""
        return self._ranks.started

    @property
    def completions(self) -> list[Completion]:
        """Completions of the last request, one of each such rank."""
        return self._ranks.completions

    # ---- requests ----

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> "Stream":
        """Continue a prompt, text or token ids, piece by piece as tokens are accepted.

        Raises RequestError before anything is computed, PeerError when a rank fails.
        """
        return self.serve(self.request(prompt, **options))

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Continue a prompt and return the whole output; arguments and errors as of ``stream``."""
        return self.stream(prompt, **options).finished()

    def generate_batch(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """Continue several prompts, as many at a time as the plan's batch, each as ``generate`` would."""
        check_options(options)
        listed = as_python("prompts", prompts)
        if isinstance(listed, str | bytes | bytearray | Mapping | Set) or not isinstance(listed, Iterable):
            raise RequestError(f"prompts: found a {type(prompts).__name__}, expected a sequence of prompts")
        return self.serve_batch([self.request(prompt, **options) for prompt in listed])

    def request(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Request:
        """Return the request that ``stream``, with these arguments, serves. Raises RequestError.

        Raises TypeError for an argument that is none of `GenerateOptions`.
        """
        check_options(options)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return make_request(self.plan, ids, options)

    def serve(self, request: Request) -> "Stream":
        """Serve a request that was checked against this plan (``Engine.request``, ``make_request``).

        Raises RequestError where another request is not finished, PeerError when a rank fails.
        """
        self._check((request,))
        stream = Stream(self, _only(self._serve((request,))))
        self._current = weakref.ref(stream)
        return stream

    def serve_batch(self, requests: Sequence[Request]) -> list[Generation]:
        """Serve requests that were checked against this plan, as many at a time as its batch, each as if alone.

        A request enters as another one ends; those that are decoded in another way (``draft``) wait for the others.
        """
        self._check(requests)
        outputs: dict[int, Completion] = {}
        with closing(self._serve(requests)) as events:
            for event in events:
                outputs |= {job: output for job, output in event if isinstance(output, Completion)}
        return [self.generation(outputs[job]) for job in range(len(requests))]

    def continuous(self, *, queue: int = 64) -> Batching:
        """Return what serves requests as they come, until it is closed; the engine serves nothing else meanwhile.

        ``queue``: most requests that wait for a place. Raises RequestError where another request is not finished, and
        under torchrun.
        """
        if not self._whole:
            raise RequestError(
                "continuous: not under torchrun, where every process would have to be sent the same requests in the "
                "same order, and only one of them hears of each: use a plan of one host, and no torchrun"
            )
        self._check(())
        with ExitStack() as resources:
            session = resources.enter_context(self._session())
            return Batching(
                session, resources.pop_all(), finished=self.generation, check=self._check_one,
                places=self.plan.options.batch, context=self.plan.options.context, queue=queue,
            )  # fmt: skip

    def check_process(self) -> None:
        """Raise RequestError in a process that was forked from the one that opened the engine: it has no ranks."""
        if os.getpid() != self._process:
            raise RequestError(
                f"the engine was opened in process {self._process}, from which this one was forked: use it there, or "
                "fork before it is opened"
            )

    def _check(self, requests: Sequence[Request]) -> None:
        self.check_process()
        for request in requests:
            self._check_one(request)
        if self._open_stream() is not None:
            raise RequestError(BUSY)

    def _check_one(self, request: Request) -> None:
        self.check_process()
        check_request(self.plan, request)
        if request.stop:
            _ = self.tokenizer

    def _serve(self, requests: Sequence[Request]) -> Generator[tuple[Delivery, ...], None, None]:
        """Yield what is added to the outputs of requests, numbered in their order; one call at a time."""
        with self._session() as session:
            left = len(requests)
            session.send(tuple(Submit(job=job, request=request) for job, request in enumerate(requests)))
            while left:
                deliveries = session.next()
                left -= sum(isinstance(output, Completion) for _, output in deliveries)
                yield deliveries

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """Have the ranks to oneself; one at a time, from whatever thread."""
        if not self._free.acquire(blocking=False):
            raise RequestError("the engine is serving another request, of another thread: one at a time")
        try:
            if self._closed:
                raise RequestError("the engine is closed: open another one")
            with self._ranks.session() as session:
                yield session
        finally:
            self._free.release()

    def stop(self) -> None:
        """End what is being served with the current step; may be called from a signal handler or another thread."""
        self._ranks.stop()

    def generation(self, completion: Completion) -> Generation:
        """Return a completion with the engine's own facts."""
        return Generation(
            prompt_ids=completion.prompt_ids,
            tokens=completion.tokens,
            text=completion.text,
            finish=completion.finish,
            accept_lengths=completion.accept_lengths,
            acceptance_length=completion.acceptance_length,
            reused=completion.reused,
            seed=completion.seed,
            load_s=self.load_s,
            prefill_s=completion.prefill_s,
            decode_s=completion.decode_s,
            tokens_per_s=completion.tokens_per_s,
            plan_digest=self._digest,
            devices=tuple(self._bytes(completion)),
        )

    def _bytes(self, completion: Completion) -> Iterator[DeviceBytes]:
        memory = {entry.device: entry for entry in self.plan.memory}
        for device, measured in zip(self.plan.devices, completion.measured_bytes, strict=True):
            planned = {term: getattr(memory[device.id], f"{term}_bytes") for term in measured}
            yield DeviceBytes(device=device.id, planned_bytes=planned, measured_bytes=measured)


def _only(events: Generator[tuple[Delivery, ...], None, None]) -> Generator[Piece | Completion, None, None]:
    """Yield the outputs of the only request."""
    with closing(events):
        for event in events:
            for _, output in event:
                yield output


class Stream(Iterator[Piece]):
    """The pieces of one output; to close it ends the output."""

    def __init__(self, engine: Engine, events: Generator[Piece | Completion, None, None]) -> None:
        self._engine, self._events = engine, events
        self._reading = threading.Lock()
        """Held while the next piece is computed."""
        self._closing = False
        self._refusal = ""
        """Refusal to raise at the end of the pieces; empty: none, the stream ends in silence."""
        self.result: Generation | None = None
        """The whole output, once all pieces were read."""
        self.ended = False

    def __next__(self) -> Piece:
        self._engine.check_process()
        if not self._reading.acquire(blocking=False):
            raise RequestError("the stream is being read by another thread: one at a time")
        try:
            piece = None if self.ended else self._next()
        except BaseException:
            self.ended = True
            raise
        finally:
            self._reading.release()
        if piece is None:
            self.ended = True
            if self._refusal and self.result is None:
                raise RequestError(self._refusal)
            raise StopIteration
        if self._closing:  # meanwhile, by another thread or a signal handler
            self.close()
        return piece

    def _next(self) -> Piece | None:
        """Return the next piece; None where there is none, and then the result is known."""
        event = next(self._events)
        if isinstance(event, Piece):
            return event
        self.result = self._engine.generation(event)
        next(self._events, None)  # lets the generators behind it finish too
        return None

    def finished(self) -> Generation:
        """Read to the end and return the whole output; raise RequestError for a stream that was closed before."""
        for _ in self:
            pass
        if self.result is None:
            raise RequestError("the stream was closed before its end: it has no result")
        return self.result

    def close(self) -> None:
        """End the output with the current step; may be called from another thread or a signal handler.

        Where somebody waits for the next piece at that moment, he gets it, and it is the last.
        """
        self._closing = True
        if not self._reading.acquire(blocking=False):
            self._engine.stop()
            return
        try:
            self.ended = True
            self._events.close()
        finally:
            self._reading.release()

    def abandon(self, refusal: str) -> None:
        """Close the stream; whoever reads on gets a RequestError."""
        self._refusal = refusal
        self.close()
