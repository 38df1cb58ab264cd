"""One rank of a run: requests go in, steps are made until the output ends.

Every rank learns the tokens from the step message and so comes to the same end by itself. Requests are served one after
the other; to serve several together is to give ``Stepper.steps`` a prompt and a sampling of each, which share forwards
and messages and nothing else, to keep an ``Output`` for each, and to ``end`` those that have ended.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer

from plans import codec
from plans.artifact import align
from plans.schema import Plan
from runtime.comm import Comm, Rendezvous, connect, disconnect
from runtime.errors import PeerError, RequestError
from runtime.images import Image, check_images, open_image
from runtime.machine import check_machine, threads_per_rank, torch_device
from runtime.memory import Memory
from runtime.progress import Progress, Timings
from runtime.request import Completion, Piece, RankTimings, Request, check_request, fingerprint
from runtime.step import Decoding, Message, Stepper
from runtime.text import TOKENIZER_FILE, Output, load_tokenizer

MEMORY_TERMS = ("weights", "draft_weights", "kv", "draft_kv", "buffers", "comm")
"""Terms of ``plans.schema.DeviceMemory``, without ``_bytes``."""


class Rank:
    """One rank's share of a plan, ready to serve requests one after the other."""

    @torch.inference_mode()
    def __init__(self, plan: Plan, directory: Path, image: Image, comm: Comm) -> None:
        self.plan, self._directory, self._comm, self._image = plan, directory, comm, image
        self._progress = comm.progress
        device = plan.devices[comm.rank]
        self._device = torch_device(device)
        self.memory = Memory(plan, device.id, self._device)
        self._stepper = Stepper(plan, image, self.memory, comm, self._device)
        self._loaded: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """One rank of the plan in a directory, its image verified; a single-device plan needs no rendezvous.

        Raises PlanError, RequestError, MachineError, ImageError or PeerError.
        """
        directory, progress = Path(directory), progress or Progress()
        plan = codec.load(directory)
        if len(plan.devices) > 1 and rendezvous is None:
            raise RequestError(f"{directory}: the plan has {len(plan.devices)} devices: use `python -m runtime run`")
        device = plan.devices[rank]
        check_machine(plan, device)
        torch.set_num_threads(threads_per_rank(plan, device))
        place = torch_device(device)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        progress.begin("reading its image")
        record = check_images(plan, directory, verify=False, devices=[device.id])
        image = open_image(plan, directory, device.id, place, record, verify=True)
        progress.begin("meeting the other ranks")
        comm = connect(plan, rank, rendezvous or Rendezvous(file=None), progress)
        progress.begin("waiting")
        return cls(plan, directory, image, comm)

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
        """Serve one request; every rank of the plan must be given the same one. Raises RequestError, PeerError."""
        completion = None
        for event in self.serve(request):
            if isinstance(event, Completion):
                completion = event
        assert completion is not None, "serving ends with a completion"
        return completion

    def serve(self, request: Request, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece | Completion]:
        """What each step adds to the output of a request, then all of it.

        ``stopped``: asked on every step whether anybody still reads; the output ends there when nobody does. Every rank
        must be given the same request. Raises RequestError, PeerError.
        """
        check_request(self.plan, request)
        request = self._agreed(request)
        output = Output(request, self.plan.model.eos_token_ids, self._tokenizer(request))
        timings = self._progress.timings = Timings(self._device) if request.timed else None
        accepts: list[int] = []
        started = prefilled = time.perf_counter()
        for step, (tokens, message) in enumerate(self.steps(request, stopped)):
            if step == 0:
                prefilled = time.perf_counter()
                if timings is not None:
                    timings.clear()
            elif self.drafts(request):
                accepts.append(message.accepted)
            kept = output.take(tokens)
            if message.stopped:
                output.cancel()
            yield Piece(output.piece(), tuple(kept))
            if output.finish is not None:
                break
        decode_s = time.perf_counter() - prefilled
        self._progress.timings = None
        self._progress.begin("waiting")
        assert output.finish is not None, "steps have no end of their own"
        yield Completion(
            prompt_ids=request.prompt_ids,
            tokens=tuple(output.tokens),
            text=output.text,
            finish=output.finish,
            accept_lengths=tuple(accepts),
            reused=self._stepper.reused[0],
            seed=None if request.sampling is None else request.sampling.seed,
            prefill_s=prefilled - started,
            decode_s=decode_s,
            measured_bytes=self.measured_bytes(),
            timings=None if timings is None else RankTimings(parts=dict(timings.parts), groups=dict(timings.groups)),
        )

    def drafts(self, request: Request) -> bool:
        """Whether a request is decoded with the plan's draft."""
        return request.draft and self._stepper.drafts

    def steps(
        self, request: Request, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[list[int], Message]]:
        """The tokens of each step, without end, and the message they came with; the first is prefill's one token."""
        how = Decoding(
            draft=request.draft,
            samplings=(request.sampling,),
            accept=request.accept,
            reuse=request.reuse,
            stopped=stopped,
        )
        for ((tokens, message),) in self._stepper.steps([request.prompt_ids], how):
            yield tokens, message

    @torch.inference_mode()
    def measured_bytes(self) -> tuple[dict[str, int], ...]:
        """Bytes made on each device of the plan, term by term; every rank must ask."""
        drafted = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith("draft."))
        made = self.memory.measured()
        mine = [self._image.nbytes - drafted, drafted, made["kv"], made["draft_kv"], made["buffers"], made["comm"]]
        every = self._comm.world.all_gather(torch.tensor(mine, device=self._device))
        return tuple(dict(zip(MEMORY_TERMS, row, strict=True)) for row in every.tolist())

    def _agreed(self, request: Request) -> Request:
        """The request with rank 0's seed; raise PeerError where another rank was given another one."""
        seed = 0 if request.sampling is None else request.sampling.seed
        mine = torch.tensor([fingerprint(request), seed], device=self._device)
        every: list[list[int]] = self._comm.world.all_gather(mine).tolist()
        for rank, (found, _) in enumerate(every):
            if found != every[0][0]:
                names = [device.id for device in self.plan.devices]
                raise PeerError(
                    f"device {names[rank]} (rank {rank}) was given another request than {names[0]} (rank 0): "
                    "give all ranks the same prompt and options"
                )
        if request.sampling is None:
            return request
        return replace(request, sampling=replace(request.sampling, seed=every[0][1]))

    # ---- what a rank has ----

    def _tokenizer(self, request: Request) -> Tokenizer | None:
        """Rank 0 makes text where it can; where text decides the end, every rank must."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._loaded is None:
            self._loaded = load_tokenizer(self._directory)
        return self._loaded
