"""The Prometheus metrics of the legs that the router sends."""

from prometheus_client import CollectorRegistry, Counter

from pdrouter.serving.leg_outcome import Attempt
from pdrouter.telemetry.tallies import Derived, HistogramTally, Tally

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Bounds for times of requests and of their legs."""


class SideLegMetrics:
    """What became of side legs of one kind.

    Attributes:
        tries: tries of the leg, by model, by what went wrong and by status, empty for none.
    """

    def __init__(self, leg: str, registry: CollectorRegistry) -> None:
        self.tries = Tally("", "", ("model", "failure", "status"))
        Derived(
            f"pdrouter_{leg}_attempts",
            f"Tries of the {leg} leg.",
            ("model",),
            self.tries,
            lambda model, *_: (model,),
            registry=registry,
        )
        Derived(
            f"pdrouter_{leg}_failures",
            f"Tries of the {leg} leg that another pod might have carried out: connect, transport, "
            "timeout, status (5xx), too-large.",
            ("model", "reason"),
            self.tries,
            lambda model, failure, _: (model, failure) if failure else None,
            registry=registry,
        )
        Derived(
            f"pdrouter_{leg}_refusals",
            f"Tries of the {leg} leg that the engine refused with a 4xx status.",
            ("model", "status"),
            self.tries,
            lambda model, failure, status: (
                (model, status) if status >= "400" and not failure else None
            ),
            registry=registry,
        )
        self.stale_connections = Counter(
            f"pdrouter_{leg}_stale_connections",
            "Keep-alive connections that the engine had closed when they were used again.",
            registry=registry,
        )
        self.seconds = HistogramTally(
            f"pdrouter_{leg}_seconds",
            f"Duration of the {leg} leg, all tries together.",
            SECONDS,
            ("model",),
            registry=registry,
        )

    def count(self, model: str, attempt: Attempt) -> None:
        """Count a try."""
        status = "" if attempt.status is None else str(attempt.status)
        self.tries.counts[model, attempt.failure or "", status] += 1
        if attempt.stale_connections:
            self.stale_connections.inc(attempt.stale_connections)


class PrefillMetrics(SideLegMetrics):
    """What became of prefill legs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("prefill", registry)
        self.retries = Counter(
            "pdrouter_prefill_retries",
            "Prefill legs that another pod might carry out, by where they were tried again: "
            "same-roleset, other-pair, over-budget (nowhere).",
            ("model", "result"),
            registry=registry,
        )
        self.handoff_failures = Counter(
            "pdrouter_handoff_failures",
            "Answers of side legs that hold nothing that the engine of the next one can work with.",
            ("model", "reason"),
            registry=registry,
        )
        self.releases = Counter(
            "pdrouter_releases",
            "Prefill answers whose blocks nobody fetches, by what came of telling the engines: "
            "asked, unexpected, failed, no-pod, unsupported, dropped.",
            ("outcome",),
            registry=registry,
        )
        self.priority_refusals = Counter(
            "pdrouter_priority_refusals",
            "Times that an engine has refused a priority; the request was sent again without.",
            ("model",),
            registry=registry,
        )
        self.prefix_corrections = Counter(
            "pdrouter_prefix_corrections",
            "Blocks of prompts of which engines have shown that they are in a pod's cache (found), "
            "or are not any more (gone), other than was thought.",
            ("model", "result"),
            registry=registry,
        )
