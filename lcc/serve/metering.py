"""Counters and times for Prometheus, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from lcc.serve.turning import Turner

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """What /metrics tells; no label holds anything that a client chose."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("lcc_requests", "Requests answered.", ("route", "status"),
                                registry=registry)  # fmt: skip
        self.seconds = Histogram("lcc_request_seconds", "From the headers to the last byte.",
                                 ("route",), buckets=SECONDS, registry=registry)  # fmt: skip
        self.first_token = Histogram("lcc_first_token_seconds", "Until an answer's first token.",
                                     buckets=SECONDS, registry=registry)  # fmt: skip
        self.prompt_tokens = Counter("lcc_prompt_tokens", "Tokens read.", registry=registry)
        self.new_tokens = Counter("lcc_completion_tokens", "Tokens written.", registry=registry)

    def watch(self, turner: Turner) -> None:
        """Ask `turner` how it is doing whenever somebody asks for the metrics."""
        gauges = {
            "lcc_answers_running": ("Answers in a slot.", lambda: len(turner.active)),
            "lcc_answers_waiting": ("Answers that wait for one.", lambda: len(turner.waiting)),
            "lcc_engine_turns": ("Turns of the engine so far.", lambda: turner.num_turns),
        }
        for name, (sentence, value) in gauges.items():
            Gauge(name, sentence, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
