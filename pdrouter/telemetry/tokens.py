"""Metrics of the answers whose tokens are counted, whoever counts them."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.serving.answers import AnswerReport
from pdrouter.telemetry.tallies import HistogramTally, Tally, create_counts

_FIRST_TOKEN_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75),
    *(1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80, 160),
)
_INTER_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
)
_KINDS = (
    ("pdrouter_prompt_tokens", "Tokens of prompts."),
    ("pdrouter_cached_tokens", "Tokens of prompts that the engine had cached, where it says so."),
    ("pdrouter_output_tokens", "Tokens of answers."),
)


class TokenMetrics:
    """Tokens and times of answers.

    A `model` label is a served model's name. What was counted for a pod is shown while the pod is
    known; what was counted for an address that is no known pod's has empty labels.
    """

    def __init__(
        self, registry: CollectorRegistry, cache: PodCache, log_entries: Mapping[str, int]
    ) -> None:
        """Declare the metrics.

        Args:
            registry: where they are shown.
            cache: the pods.
            log_entries: entries of Envoy's access log by what became of them.
        """
        self._answers = Tally(
            "pdrouter_counted_answers",
            "Answers that were looked at for their tokens, by whether they said them (known) or "
            "not (unknown).",
            ("model", "usage"),
            registry=registry,
        )
        self._first_token = HistogramTally(
            "pdrouter_time_to_first_token_seconds",
            "From the request's headers to the first of a streamed answer's body.",
            _FIRST_TOKEN_SECONDS,
            ("model",),
            registry=registry,
        )
        self._inter_token = HistogramTally(
            "pdrouter_inter_token_latency_seconds",
            "Mean time between two tokens of a streamed answer.",
            _INTER_TOKEN_SECONDS,
            ("model",),
            registry=registry,
        )
        self._flags = Tally(
            "pdrouter_envoy_response_flags",
            "What went wrong with routed requests in Envoy's eyes, as its access log says.",
            ("model", "flag"),
            registry=registry,
        )
        self._tokens = _PodTokens(cache)
        registry.register(self._tokens)
        registry.register(_LogEntries(log_entries))

    def count(self, report: AnswerReport, pod: Pod | None) -> None:
        """Count an answer of a served model, on this pod if it is a known one."""
        model = report.request.model
        for flag in report.flags:
            self._flags.count(model, flag)
        if not report.request.generates or not 200 <= report.status < 400:
            return
        usage = report.usage
        if report.counted:
            self._answers.count(model, "unknown" if usage is None else "known")
        if usage is not None:
            self._tokens.add(
                model, pod, (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
            )
        if report.first_token_s is not None:
            self._first_token.observe(report.first_token_s, model)
        inter_token_s = report.inter_token_s
        if inter_token_s is not None:
            self._inter_token.observe(inter_token_s, model)


class _PodTokens(Collector):
    """Counters of tokens, for each model and pod."""

    def __init__(self, cache: PodCache) -> None:
        self._cache = cache
        self._counts = tuple(create_counts() for _ in _KINDS)

    def add(self, model: str, pod: Pod | None, tokens: Iterable[int | None]) -> None:
        """Add tokens, in the order of the kinds."""
        labels = (model, "", "") if pod is None else (model, pod.namespace, pod.name)
        for counts, number in zip(self._counts, tokens, strict=True):
            if number is not None:
                counts[labels] += number

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series of a model."""
        for counts in self._counts:
            for key in [key for key in counts if key[0] == labels["model"]]:
                counts.pop(key, None)

    def collect(self) -> Iterable[Metric]:
        """Yield the counters as they stand now, without those of pods that are gone."""
        known = {(pod.namespace, pod.name) for pod in self._cache.view.pods} | {("", "")}
        for (name, text), counts in zip(_KINDS, self._counts, strict=True):
            family = CounterMetricFamily(name, text, None, ("model", "namespace", "pod"))
            for labels, number in counts.copy().items():
                if labels[1:] in known:
                    family.add_metric(labels, number)
                else:
                    counts.pop(labels, None)
            yield family


class _LogEntries(Collector):
    """What has become of the entries of Envoy's access log."""

    def __init__(self, results: Mapping[str, int]) -> None:
        self._results = results

    def collect(self) -> Iterable[Metric]:
        """Yield the counter as it stands now."""
        family = CounterMetricFamily(
            "pdrouter_access_log_entries",
            "Entries of Envoy's access log, by what became of them: counted, foreign, "
            "unknown-model, invalid.",
            None,
            ("result",),
        )
        for result, number in dict(self._results).items():
            family.add_metric((result,), number)
        yield family
