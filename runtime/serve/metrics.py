"""Metrics in Prometheus' text format, in a registry of their own.

A `Meter` is called with the events of one request, in the thread that delivers them; gauges are read when somebody
asks for them.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from runtime.continuous import Event, State
from runtime.generation import Generation
from runtime.request import Piece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms of a server; ``state``: reads the engine, None while it is loaded."""

    def __init__(self, state: Callable[[], State | None]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(Gauges(state))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"eagleplan_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"eagleplan_{name}_seconds", text, registry=registry, buckets=buckets)

        self.responses = counter("http_responses", "Responses by path and status.", "path", "status")
        self.requests = counter(
            "requests", "Outputs that ended, by reason: stop, length, cancelled, refused, failed.", "finish"
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("prompt_tokens_cached", "Tokens of prompts whose KV cache rows were there.")
        self.new_tokens = counter("generated_tokens", "New tokens.")
        self.drafted_steps = counter("drafted_steps", "Steps in which the drafter proposed tokens.")
        self.accepted = counter(
            "accepted_tokens", "Drafted tokens that were accepted, by position in the step, from 1.", "position"
        )
        self.first_token = histogram("time_to_first_token", "From the request to its first token.", FIRST_S)
        self.between_tokens = histogram(
            "time_between_tokens", "From token to token; tokens of one step share its time.", BETWEEN_S
        )
        self.whole = histogram("request_duration", "From the request to the end of its output.", WHOLE_S)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)

    def meter(self) -> "Meter":
        """Return the meter of a request that is submitted now."""
        return Meter(self)


class Meter:
    """Times and counts of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begin = self._last = time.monotonic()
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Count an event."""
        metrics, now = self._metrics, time.monotonic()
        if isinstance(event, Piece):
            self._step(event, now)
        elif isinstance(event, Generation):
            metrics.requests.labels("stop" if event.finish == "eos" else event.finish).inc()
            metrics.whole.observe(now - self._begin)
            metrics.prompt_tokens.inc(len(event.prompt_ids))
            metrics.cached_tokens.inc(event.reused)
        else:
            metrics.requests.labels("failed").inc()

    @property
    def elapsed_s(self) -> float:
        """Time since the request was submitted."""
        return time.monotonic() - self._begin

    def _step(self, piece: Piece, now: float) -> None:
        metrics, count = self._metrics, len(piece.tokens)
        if count == 0:
            return
        metrics.new_tokens.inc(count)
        if not self._begun:
            self._begun = True
            metrics.first_token.observe(now - self._begin)
            count -= 1
        for _ in range(count):
            metrics.between_tokens.observe((now - self._last) / count)
        self._last = now
        if piece.accepted is not None:
            metrics.drafted_steps.inc()
            for position in range(1, piece.accepted + 1):
                metrics.accepted.labels(str(position)).inc()


class Gauges(Collector):
    """Gauges of how much is being served, at the moment at which it is asked."""

    def __init__(self, state: Callable[[], State | None]) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; all 0 while the engine is loaded."""
        state = self._state()
        values = {
            "up": ("1 where requests are served.", state is not None and not state.draining and state.failure is None),
            "requests_running": ("Requests that are decoded.", 0 if state is None else state.running),
            "requests_waiting": ("Requests that wait for a place.", 0 if state is None else state.waiting),
            "places": ("Requests that are decoded at a time.", 0 if state is None else state.places),
            "kv_rows_used": ("KV cache rows of running requests.", 0 if state is None else state.kv_rows_used),
            "kv_rows": ("KV cache rows of all places.", 0 if state is None else state.kv_rows),
        }
        for name, (text, value) in values.items():
            yield GaugeMetricFamily(f"eagleplan_{name}", text, value=float(value))
