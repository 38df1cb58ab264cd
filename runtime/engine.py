"""One rank of a run: prefill, then draft -> verify -> commit until the output ends.

    verifier (leader of the head)         draft group                 all ranks
    ─────────────────────────────────     ─────────────────────────   ─────────────────────────
    verify: forward over the tree,
      argmax, accepted path
      ── feature message ──────────────►  extend, grow the next tree
                                            ── step message ───────►  keep(path), next tree

All ranks run this program; each does what the plan gave it. Every rank learns the tokens from the step message and so
comes to the same end by itself.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tokenizers import Tokenizer
from torch import Tensor

from plans import codec
from plans.artifact import align
from plans.buffers import accept_rows, tree_depth, tree_rows
from plans.facts import show
from plans.schema import Plan
from runtime.base import Base, Forward
from runtime.comm import Comm, Rendezvous, connect, disconnect
from runtime.draft import Drafter, FeatureMessage, feature_message
from runtime.errors import RequestError
from runtime.images import Image, check_images, open_image
from runtime.kvcache import KvCache
from runtime.machine import check_machine, threads_per_rank, torch_device
from runtime.memory import Memory
from runtime.text import TOKENIZER_FILE, Output, Request, load_tokenizer
from runtime.tree import ancestors
from runtime.verify import Verdict, greedy

MEMORY_TERMS = ("weights", "draft_weights", "kv", "draft_kv", "buffers", "comm")
"""Terms of ``plans.schema.DeviceMemory``, without ``_bytes``."""

PHASES = ("starting", "reading its image", "meeting the other ranks", "prefill", "verify", "draft", "commit", "waiting")
"""What a rank can be doing; told to ``doing`` when it begins."""

Doing = Callable[[str], None]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """The message of a step, on the host: how much of the last tree is kept, and the next tree's tokens."""

    accepted: int
    path: list[int]
    tokens: list[int]
    """Of the next tree, root first; the root is certain."""
    parents: list[int]


class Channel:
    """The step message in a decoding mode: views of its buffer, and who fills it."""

    def __init__(self, buffer: Tensor, nodes: int, kept: int, levels: int, source: int, drafted: bool) -> None:
        self.wire = buffer[: 1 + kept + 2 * nodes]
        self.path = self.wire[1 : 1 + kept]
        self.tokens = self.wire[1 + kept : 1 + kept + nodes]
        self.parents = self.wire[1 + kept + nodes :]
        self.nodes, self.kept, self.levels, self.source, self.drafted = nodes, kept, levels, source, drafted

    def write(self, accepted: Tensor, path: Tensor, tokens: Tensor, parents: Tensor) -> None:
        torch.cat([accepted, path, tokens, parents], out=self.wire)

    def read(self) -> Message:
        """The one transfer to the host of a step."""
        words = self.wire.tolist()
        start, stop = 1 + self.kept, 1 + self.kept + self.nodes
        return Message(accepted=words[0], path=words[1:start], tokens=words[start:stop], parents=words[stop:])


def check_supported(plan: Plan) -> None:
    """Raise RequestError for a plan that this runtime does not execute, naming what it does not."""
    options = plan.options
    facts: list[tuple[str, object, object, str]] = [
        ("options.batch", options.batch, 1, "this runtime decodes 1 sequence"),
        ("options.kv_dtype", options.kv_dtype, options.dtype, "this runtime keeps KV in the plan's dtype"),
    ]
    for i, stage in enumerate(plan.stages):
        facts.append((f"stages[{i}].kv_axis", stage.kv_axis, "heads", "this runtime divides KV by heads"))
        whole = (1,) * len(stage.devices)
        facts.append((f"stages[{i}].kv_subgroups", stage.kv_subgroups, whole, "this runtime repeats no KV head"))
    for i, layers in enumerate(plan.model.layers):
        facts.append((f"model.layers[{i}].mlp.kind", layers.mlp.kind, "gated", "this runtime has no blocks of experts"))
    for path, found, expected, why in facts:
        if found != expected:
            raise RequestError(f"plan: {path}: found {show(found)}, expected {show(expected)}: {why}")


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
        in_base = any((comm.embed, *comm.stages, comm.head))
        self._base = Base(plan, image, self.memory, comm) if in_base else None
        self._drafter = Drafter(plan, image, self.memory, comm) if comm.draft else None
        ranks = {device.id: rank for rank, device in enumerate(plan.devices)}
        verifier = ranks[plan.head.devices[0]]
        buffer = self.memory.first("message", "embed.message", "head.message", "draft.message")
        self._plain = Channel(buffer, nodes=1, kept=1, levels=0, source=verifier, drafted=False)
        self._drafted = self._plain
        if plan.draft_placement is not None:
            self._drafted = Channel(
                buffer,
                nodes=tree_rows(plan.options),
                kept=accept_rows(plan.options),
                levels=tree_depth(plan.options),
                source=ranks[plan.draft_placement.devices[0]],
                drafted=True,
            )
        self._features = self._feature_messages() if comm.feature else {}
        index = self.memory.first("index", "embed.index", "head.index") if self._base else None
        self._chunk = None if index is None else index[0, : plan.options.prefill_chunk]
        self._loaded: Tokenizer | None = None
        self._none = torch.zeros(accept_rows(plan.options), dtype=torch.int64, device=self._device)

    @classmethod
    def open(cls, directory: str | Path, *, rank: int = 0, rendezvous: Rendezvous | None = None,
             doing: Doing = lambda phase: None) -> Self:  # fmt: skip
        """One rank of the plan in a directory, its image verified; a single-device plan needs no rendezvous.

        Raises PlanError, RequestError, MachineError, ImageError or PeerError.
        """
        directory = Path(directory)
        plan = codec.load(directory)
        check_supported(plan)
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
        return request.draft and self._drafted.drafted

    def steps(self, prompt_ids: tuple[int, ...], *, draft: bool) -> Iterator[tuple[list[int], Message]]:
        """The tokens of each step, without end, and the message they came with; the first is prefill's one token."""
        channel = self._drafted if draft else self._plain
        message = self._prefill(prompt_ids, channel)
        yield message.tokens[:1], message
        while True:
            tree, message = message.tokens, self._step(channel)
            accepted = [tree[node] for node in message.path[1 : 1 + message.accepted]]
            yield [*accepted, message.tokens[0]], message

    @torch.inference_mode()
    def measured_bytes(self) -> list[dict[str, int]]:
        """Bytes made on each device of the plan, term by term; every rank must ask."""
        drafted = sum(align(slot.nbytes) for name, slot in self._image.slots.items() if name.startswith("draft."))
        made = self.memory.measured()
        mine = [self._image.nbytes - drafted, drafted, made["kv"], made["draft_kv"], made["buffers"], made["comm"]]
        every = self._comm.world.all_gather(torch.tensor(mine, device=self._device))
        return [dict(zip(MEMORY_TERMS, row, strict=True)) for row in every.tolist()]

    # ---- one step ----

    @torch.inference_mode()
    def _step(self, channel: Channel) -> Message:
        """Verify the tree in the channel, draft the next one, commit what was accepted."""
        self._doing("verify")
        verdict, features = None, None
        if self._base is not None:
            mask = ancestors(channel.parents, channel.levels)
            forward = self._base.verify(channel.tokens, mask)
            if forward is not None:
                best = self._base.best(forward.normed)
                verdict = greedy(channel.tokens, channel.parents, mask, best, channel.kept)
                features = forward.features.index_select(1, verdict.path)
        message = self._exchange(channel, channel.kept, verdict, features)
        self._doing("commit")
        if self._base is not None and self._base.cache is not None:
            self._base.cache.keep(channel.path, message.accepted, channel.nodes)
        if self._drafter is not None and channel.drafted:
            self._drafter.cache.commit(message.accepted + 1)
        return message

    def _exchange(self, channel: Channel, width: int, verdict: Verdict | None, features: Tensor | None) -> Message:
        """The verifier's verdict (and features [a, width, T]) -> the step's message, on every rank."""
        self._doing("draft")
        if channel.drafted:
            told = self._tell_draft(width, verdict, features)
            if self._drafter is not None and told is not None:
                tokens, parents = self._drafter.grow(self._drafter.extend(told), told)
                if self._drafter.group.leads:
                    channel.write(told.accepted, told.path, tokens, parents)
        elif verdict is not None:
            root = verdict.tokens.index_select(0, verdict.accepted)
            channel.write(verdict.accepted, verdict.path[:1], root, torch.zeros_like(root))
        self._comm.world.broadcast(channel.wire, channel.source)
        return channel.read()

    def _tell_draft(self, width: int, verdict: Verdict | None, features: Tensor | None) -> FeatureMessage | None:
        """The feature message, from the verifier to the draft group; None on ranks that are neither."""
        group = self._comm.feature
        if group is None:
            return None
        message = self._features[width]
        if verdict is not None and features is not None:
            message.accepted.copy_(verdict.accepted)
            message.tokens.copy_(verdict.tokens)
            message.path.copy_(verdict.path)
            message.features.view(width, *features.shape[::2]).copy_(features.transpose(0, 1))
        group.broadcast(message.wire, group.ranks[0])
        return message

    # ---- prefill ----

    @torch.inference_mode()
    def _prefill(self, prompt: tuple[int, ...], channel: Channel) -> Message:
        """Run the prompt in chunks of a fixed width; the message holds the first token and the first tree."""
        width = self.plan.options.prefill_chunk
        for cache in self._caches():
            cache.truncate(0)
        for start in range(0, len(prompt), width):
            self._doing("prefill")
            chunk, following = prompt[start : start + width], prompt[start + 1 : start + 1 + width]
            last = len(chunk) - 1
            forward = self._run_chunk(chunk)
            if start + width < len(prompt):
                if channel.drafted:
                    self._extend_draft(self._prompt_verdict(following, forward, last, None), forward, last)
                continue
            best = None
            if self._base is not None and forward is not None:
                best = self._base.best(forward.normed[last : last + 1])
            verdict = self._prompt_verdict(following, forward, last, best)
            message = self._exchange(channel, width, verdict, None if forward is None else forward.features)
            if self._drafter is not None and channel.drafted:
                self._drafter.cache.commit(last + 1)
        return message

    def _run_chunk(self, chunk: tuple[int, ...]) -> Forward | None:
        """A forward over a padded chunk, committed."""
        if self._base is None or self._chunk is None:
            return None
        padding = [0] * (self._chunk.shape[0] - len(chunk))
        self._chunk.copy_(torch.tensor([*chunk, *padding]))
        return self._base.prefill(self._chunk, len(chunk) - 1)

    def _extend_draft(self, verdict: Verdict | None, forward: Forward | None, last: int) -> None:
        """Show the draft a chunk that is not the last one."""
        features = None if forward is None else forward.features
        told = self._tell_draft(self.plan.options.prefill_chunk, verdict, features)
        if self._drafter is not None and told is not None:
            self._drafter.extend(told)
            self._drafter.cache.commit(last + 1)

    def _prompt_verdict(
        self, following: tuple[int, ...], forward: Forward | None, last: int, best: Tensor | None
    ) -> Verdict | None:
        """A chunk as if it had been drafted and accepted: the token behind each row, ``best`` [1] behind the last."""
        if forward is None:
            return None
        width = self.plan.options.prefill_chunk
        tokens = torch.tensor([*following, *[0] * (width - len(following))], device=self._device)
        if best is not None:
            tokens[last : last + 1] = best
        return Verdict(accepted=torch.tensor([last], device=self._device), path=self._none, tokens=tokens)

    # ---- what a rank has ----

    def _caches(self) -> list[KvCache]:
        caches = [part.cache for part in (self._base, self._drafter) if part is not None]
        return [cache for cache in caches if cache is not None]

    def _tokenizer(self, request: Request) -> Tokenizer | None:
        """Rank 0 makes text where it can; where text decides the end, every rank must."""
        if not request.stop and (self._comm.rank or not (self._directory / TOKENIZER_FILE).is_file()):
            return None
        if self._loaded is None:
            self._loaded = load_tokenizer(self._directory)
        return self._loaded

    def _feature_messages(self) -> dict[int, FeatureMessage]:
        """By width: of a prefill chunk, and of an accepted path."""
        buffer = self.memory.buffer("features" if self._comm.head else "draft.features")
        widths = {self.plan.options.prefill_chunk, accept_rows(self.plan.options)}
        return {width: feature_message(self.plan, buffer, width) for width in widths}
