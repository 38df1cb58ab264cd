"""One rank of a run: requests go in, steps are made until the output ends.

Every rank reads the tokens of a step from the step message, and so comes to the same end of the output by itself.
Requests that are served together share forwards and messages and nothing else; those that have ended wait for the
others.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer

from plans.artifact import align
from plans.schema import MEMORY_TERMS, Plan
from plans.slots import DRAFT_PREFIX
from runtime.comm.groups import Comm, Rendezvous, connect, disconnect
from runtime.comm.progress import Progress, Timings
from runtime.decode.messages import Message
from runtime.decode.step import Decoding, Stepper, decoding
from runtime.errors import PeerError, RequestError
from runtime.image.buffers import Memory
from runtime.image.dtypes import DTYPES
from runtime.image.slots import Image, open_image
from runtime.image.verify import check_images
from runtime.model import ops
from runtime.processes.machine import device_errors, read_memory, threads_per_rank, torch_device
from runtime.request import Completion, Events, Piece, RankTimings, Request, fingerprint
from runtime.sampling import Sampling
from runtime.text import TOKENIZER_FILE, Output, load_tokenizer

Steps = Generator[list[tuple[list[int], Message]], None, None]
"""New tokens and step message of each request, step by step; the first step is prefill, which gives one token."""


WARM_UP_STEPS = 2
"""Prefill, which pads every prompt to a chunk, and one step."""


def needs_warm_up(plan: Plan) -> bool:
    """Return True for a plan with a GPU; a CPU has its kernels compiled, for all shapes, before it is used."""
    return any(device.kind != "cpu" for device in plan.devices)


def never() -> bool:
    """Return False: nobody asks the output to stop."""
    return False


class Rank:
    """One rank's part of a plan, ready to serve requests one after the other."""

    @torch.inference_mode()
    def __init__(self, plan: Plan, directory: Path, image: Image, comm: Comm) -> None:
        self.plan, self._directory, self._comm, self._image = plan, directory, comm, image
        self._progress = comm.progress
        device = plan.devices[comm.rank]
        self._device = torch_device(device)
        self.memory = Memory(plan, device.id, self._device)
        self._stepper = Stepper(plan, image, self.memory, comm, self._device)
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        plan: Plan,
        directory: Path,
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
        progress: Progress | None = None,
        verify: bool = True,
    ) -> Self:
        """Open one rank of a plan in this process; a plan of one device needs no rendezvous.

        ``verify``: compare the image with its digest; its size and slot table are compared anyway.
        Raises RequestError, MachineError, ImageError or PeerError.
        """
        progress = progress or Progress()
        if len(plan.devices) > 1 and rendezvous is None:
            raise RequestError(f"{directory}: the plan has {len(plan.devices)} devices: use `python -m runtime run`")
        device = plan.devices[rank]
        torch.set_num_threads(threads_per_rank(plan, device))
        target = torch_device(device)
        if target.type == "cuda":
            torch.cuda.set_device(target)
        progress.begin("reading its image")
        record = check_images(plan, directory, verify=False, devices=[device.id])
        image = open_image(plan, directory, device.id, target, record, verify=verify)
        progress.begin("meeting the other ranks")
        comm = connect(plan, rank, rendezvous, progress)
        with progress.warming_up():
            if target.type == "cpu":
                ops.prepare(DTYPES[plan.options.dtype])
            opened = cls(plan, directory, image, comm)
            opened.memory.begin_measuring()
            if needs_warm_up(plan):
                opened.warm_up()
        progress.begin("waiting")
        return opened

    def warm_up(self) -> None:
        """Run a prefill and a step of each kind, with the shapes of all others: a collective, all ranks must call it.

        On a GPU the first use of an operation loads its library and its kernel, and plans a shape; afterwards a step
        has no pauses in which a rank seems to hang.
        """
        sampled = Sampling(temperature=1.0, top_k=2, top_p=0.5, seed=0)
        for draft in (True, False) if self._stepper.drafts else (False,):
            for sampling in (None, sampled):
                options = replace(decoding(draft=draft), samplings=(sampling,))
                for _ in islice(self._stepper.steps([(0,)], options), WARM_UP_STEPS):
                    pass
        self._stepper.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group of ranks."""
        disconnect()

    # ---- requests ----

    def generate(self, request: Request) -> Completion:
        """Serve one request; every rank of the plan must be sent the same one. Raises PeerError."""
        with closing(self.serve_batch((request,))) as events:
            *_, (completion,) = events
        assert isinstance(completion, Completion), "serving ends with completions"
        return completion

    def serve_batch(self, requests: tuple[Request, ...], stopped: Callable[[], bool] = never) -> Events:
        """Yield the output of requests that are served together, each as if alone; pieces of ended ones are empty.

        The requests have been checked against the plan, and every rank must be sent the same ones. ``stopped`` is
        called on every step: True ends the output there, because nobody reads it any more. Raises PeerError, and
        MachineError for an error of the device.
        """
        with device_errors(self.plan.devices[self._comm.rank]):
            yield from self._serve(requests, stopped)

    def _serve(self, requests: tuple[Request, ...], stopped: Callable[[], bool]) -> Events:
        requests = tuple(self._agreed(request) for request in requests)
        eos, first = self.plan.model.eos_token_ids, requests[0]
        served = [_Served(request, Output(request, eos, self._text_decoder(request))) for request in requests]
        timings = self._progress.timings = Timings(self._device) if first.timed else None
        begin = prefilled = time.perf_counter()
        for number, step in enumerate(self._steps(requests, stopped)):
            if number == 0:
                prefilled = time.perf_counter()
                if timings is not None:
                    timings.clear()
            yield self._take(served, step, drafted=number > 0 and self.drafts(first))
            if all(request.output.finished for request in served):
                break
        self._progress.timings = None
        self._progress.begin("waiting")
        yield self._completions(served, begin, prefilled, timings)

    def _take(
        self, served: list["_Served"], step: list[tuple[list[int], Message]], *, drafted: bool
    ) -> tuple[Piece, ...]:
        """Return what a step adds to each output; end the sequences whose output ends with it."""
        pieces = []
        for sequence, (request, (tokens, message)) in enumerate(zip(served, step, strict=True)):
            running = not request.output.finished
            pieces.append(request.take(tokens, message, drafted=drafted))
            if running and request.output.finished:
                self._stepper.end(sequence)
        return tuple(pieces)

    def _completions(
        self, served: list["_Served"], begin: float, prefilled: float, timings: Timings | None
    ) -> tuple[Completion, ...]:
        """Return the completions of ended outputs; ``begin``, ``prefilled``: times of the start and the first token."""
        measured, memory = self.measured_bytes(), read_memory(self._device)
        spent = None if timings is None else RankTimings(parts=dict(timings.parts), groups=dict(timings.groups))
        return tuple(
            Completion(
                prompt_ids=request.request.prompt_ids,
                tokens=tuple(request.output.tokens),
                text=request.output.text,
                finish=request.output.ended_by,
                accept_lengths=tuple(request.accept_lengths),
                reused=reused,
                seed=None if request.request.sampling is None else request.request.sampling.seed,
                prefill_s=prefilled - begin,
                decode_s=request.ended - prefilled,
                measured_bytes=measured,
                memory=memory,
                timings=spent,
            )
            for request, reused in zip(served, self._stepper.reused, strict=False)
        )

    def drafts(self, request: Request) -> bool:
        """Return True where a request is decoded with the plan's drafter."""
        return request.draft and self._stepper.drafts

    def steps(self, request: Request, stopped: Callable[[], bool] = never) -> Iterator[tuple[list[int], Message]]:
        """Yield the new tokens and the step message of each step of one request, without end."""
        with closing(self._steps((request,), stopped)) as steps:
            for (step,) in steps:
                yield step

    def _steps(self, requests: tuple[Request, ...], stopped: Callable[[], bool]) -> Steps:
        decoding = Decoding(
            draft=requests[0].draft,
            samplings=tuple(request.sampling for request in requests),
            accept=requests[0].accept,
            reuse=requests[0].reuse,
            stopped=stopped,
        )
        yield from self._stepper.steps([request.prompt_ids for request in requests], decoding)

    @torch.inference_mode()
    def measured_bytes(self) -> tuple[dict[str, int], ...]:
        """Return the bytes allocated on each device of the plan, by term; a collective: every rank must call it."""
        drafter = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith(DRAFT_PREFIX))
        terms = self.memory.measured()
        own = [self._image.nbytes - drafter, drafter, terms["kv"], terms["draft_kv"], terms["buffers"], terms["comm"]]
        every = self._comm.world.all_gather(torch.tensor(own, device=self._device))
        with self._progress.reading():
            rows = every.tolist()
        return tuple(dict(zip(MEMORY_TERMS, row, strict=True)) for row in rows)

    def _agreed(self, request: Request) -> Request:
        """Return the request with rank 0's seed; raise PeerError where another rank was sent another request."""
        seed = 0 if request.sampling is None else request.sampling.seed
        own = torch.tensor([fingerprint(request), seed], device=self._device)
        gathered = self._comm.world.all_gather(own)
        with self._progress.reading():
            every: list[list[int]] = gathered.tolist()
        for rank, (other, _) in enumerate(every):
            if other != every[0][0]:
                names = [device.id for device in self.plan.devices]
                raise PeerError(
                    f"device {names[rank]} (rank {rank}) was given another request than {names[0]} (rank 0): "
                    "give all ranks the same prompt and options"
                )
        if request.sampling is None:
            return request
        return replace(request, sampling=replace(request.sampling, seed=every[0][1]))

    def _text_decoder(self, request: Request) -> Tokenizer | None:
        """Return the tokenizer where this rank needs text: rank 0 for the output, every rank for stop strings."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._directory)
        return self._tokenizer


class _Served:
    """A request that is being served: its output, and the accepted length of each step."""

    def __init__(self, request: Request, output: Output) -> None:
        self.request, self.output = request, output
        self.accept_lengths: list[int] = []
        self.ended = 0.0
        """Time at which the output ended."""

    def take(self, tokens: list[int], message: Message, *, drafted: bool) -> Piece:
        """Add a step to the output and return what it adds: nothing once the output has ended."""
        if self.output.finished:
            return Piece()
        accepted = message.accepted if drafted else None
        if accepted is not None:
            self.accept_lengths.append(accepted)
        kept = self.output.take(tokens)
        if message.stopped:
            self.output.cancel()
        if self.output.finish is not None:
            self.ended = time.perf_counter()
        return Piece(self.output.piece(), tuple(kept), accepted=accepted, at_s=time.monotonic())
