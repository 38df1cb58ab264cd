"""One rank of a run: requests go in, steps are made until the output ends.

Every rank learns the tokens from the step message and so comes to the same end by itself.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer

from plans import codec
from plans.artifact import align
from plans.schema import Plan
from runtime.comm import Comm, Rendezvous, connect, disconnect
from runtime.errors import RequestError
from runtime.images import Image, check_images, open_image
from runtime.machine import check_machine, threads_per_rank, torch_device
from runtime.memory import Memory
from runtime.step import Doing, Message, Stepper
from runtime.text import TOKENIZER_FILE, Output, Request, load_tokenizer

MEMORY_TERMS = ("weights", "draft_weights", "kv", "draft_kv", "buffers", "comm")
"""Terms of ``plans.schema.DeviceMemory``, without ``_bytes``."""

PHASES = ("starting", "reading its image", "meeting the other ranks", "prefill", "verify", "draft", "commit", "waiting")
"""What a rank can be doing; told to ``doing`` when it begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one step added to the output of a request."""

    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The output of one request, with its times."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    accept_lengths: tuple[int, ...]
    """Accepted drafted tokens of each step; empty in plain decoding."""
    prefill_s: float
    decode_s: float
    """After the first token."""

    @property
    def tokens_per_s(self) -> float:
        """Of decoding: the tokens after the first, which prefill gives."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else 0.0


def check_request(plan: Plan, request: Request) -> None:
    """Raise RequestError where the plan cannot serve the request."""
    context, vocabulary, prompt = plan.options.context, plan.model.vocab_size, request.prompt_ids
    if not prompt:
        raise RequestError("prompt: empty, expected at least one token")
    for position, token in enumerate(prompt):
        if not 0 <= token < vocabulary:
            raise RequestError(f"prompt_ids[{position}]: found {token}, expected 0 to {vocabulary - 1}")
    if request.max_new_tokens < 1:
        raise RequestError(f"max_new_tokens: found {request.max_new_tokens}, expected at least 1")
    if len(prompt) + request.max_new_tokens > context:
        raise RequestError(
            f"prompt of {len(prompt)} tokens + max_new_tokens {request.max_new_tokens} = "
            f"{len(prompt) + request.max_new_tokens}, the plan has a context of {context}: ask for at most "
            f"{max(0, context - len(prompt))} new tokens, or build a plan with a longer context"
        )


class Engine:
    """One rank's share of a plan, ready to serve requests one after the other."""

    @torch.inference_mode()
    def __init__(self, plan: Plan, directory: Path, image: Image, comm: Comm, doing: Doing) -> None:
        self.plan, self._directory, self._comm, self._image, self._doing = plan, directory, comm, image, doing
        device = plan.devices[comm.rank]
        self._device = torch_device(device)
        self.memory = Memory(plan, device.id, self._device)
        self._stepper = Stepper(plan, image, self.memory, comm, self._device, doing)
        self._loaded: Tokenizer | None = None

    @classmethod
    def open(cls, directory: str | Path, *, rank: int = 0, rendezvous: Rendezvous | None = None,
             doing: Doing = lambda phase: None) -> Self:  # fmt: skip
        """One rank of the plan in a directory, its image verified; a single-device plan needs no rendezvous.

        Raises PlanError, RequestError, MachineError, ImageError or PeerError.
        """
        directory = Path(directory)
        plan = codec.load(directory)
        if len(plan.devices) > 1 and rendezvous is None:
            raise RequestError(f"{directory}: the plan has {len(plan.devices)} devices: use `python -m runtime run`")
        device = plan.devices[rank]
        check_machine(plan, device)
        torch.set_num_threads(threads_per_rank(plan, device))
        place = torch_device(device)
        if place.type == "cuda":
            torch.cuda.set_device(place)
        doing("reading its image")
        record = check_images(plan, directory, verify=False, devices=[device.id])
        image = open_image(plan, directory, device.id, place, record, verify=True)
        doing("meeting the other ranks")
        comm = connect(plan, rank, rendezvous or Rendezvous(file=None))
        return cls(plan, directory, image, comm, doing)

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

    def generate(self, request: Request, on_piece: Callable[[Piece], None] = lambda piece: None) -> Completion:
        """Serve one request; every rank of the plan must be given the same one. Raises RequestError, PeerError."""
        check_request(self.plan, request)
        output = Output(request, self.plan.model.eos_token_ids, self._tokenizer(request))
        accepts: list[int] = []
        started = prefilled = time.perf_counter()
        for step, (tokens, message) in enumerate(self.steps(request.prompt_ids, draft=request.draft)):
            if step == 0:
                prefilled = time.perf_counter()
            elif self.drafts(request):
                accepts.append(message.accepted)
            kept = output.take(tokens)
            on_piece(Piece(tokens=tuple(kept), text=output.piece()))
            if output.finished:
                break
        self._doing("waiting")
        return Completion(
            prompt_ids=request.prompt_ids,
            tokens=tuple(output.tokens),
            text=output.text,
            accept_lengths=tuple(accepts),
            prefill_s=prefilled - started,
            decode_s=time.perf_counter() - prefilled,
        )

    def drafts(self, request: Request) -> bool:
        """Whether a request is decoded with the plan's draft."""
        return request.draft and self._stepper.drafts

    def steps(self, prompt_ids: tuple[int, ...], *, draft: bool) -> Iterator[tuple[list[int], Message]]:
        """The tokens of each step, without end, and the message they came with; the first is prefill's one token."""
        for ((tokens, message),) in self._stepper.steps([prompt_ids], draft=draft):
            yield tokens, message

    @torch.inference_mode()
    def measured_bytes(self) -> list[dict[str, int]]:
        """Bytes made on each device of the plan, term by term; every rank must ask."""
        drafted = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith("draft."))
        made = self.memory.measured()
        mine = [self._image.nbytes - drafted, drafted, made["kv"], made["draft_kv"], made["buffers"], made["comm"]]
        every = self._comm.world.all_gather(torch.tensor(mine, device=self._device))
        return [dict(zip(MEMORY_TERMS, row, strict=True)) for row in every.tolist()]

    # ---- what a rank has ----

    def _tokenizer(self, request: Request) -> Tokenizer | None:
        """Rank 0 makes text where it can; where text decides the end, every rank must."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._loaded is None:
            self._loaded = load_tokenizer(self._directory)
        return self._loaded
