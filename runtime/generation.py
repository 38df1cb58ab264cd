"""The output of one request as a caller of the engine gets it."""

from dataclasses import dataclass

from runtime.request import Finish


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBytes:
    """Memory of one device in bytes, by term: as planned, and as allocated."""

    device: str
    planned_bytes: dict[str, int]
    measured_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The output of one request: the fields of ``run --json``."""

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    """New ids, without the prompt; an end-of-sequence token is the last of them."""
    text: str
    finish: Finish
    accept_lengths: tuple[int, ...]
    """Accepted drafted tokens of each step; empty in plain decoding."""
    acceptance_length: float
    """Mean tokens per step: mean of accepted + 1."""
    reused: int
    """Tokens of the prompt whose KV cache rows were there already."""
    seed: int | None
    """Seed of sampling, as asked for or random; the same seed gives the same text again. None: greedy."""
    load_s: float
    """Load time of the engine."""
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    """Tokens after the first per second of decoding."""
    plan_digest: str
    devices: tuple[DeviceBytes, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and output together: the row that ``generate`` of transformers and ``eagenerate`` of EAGLE return."""
        return self.prompt_ids + self.tokens
