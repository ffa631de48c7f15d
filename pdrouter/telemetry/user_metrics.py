"""What users ask for, what they use, and what limits have no room for."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.record import RequestRecord
from pdrouter.telemetry.reloads import declare_reloads
from pdrouter.telemetry.tallies import Tally
from pdrouter.users.keys_file import KeysFile

MOST_USERS = 200
"""Users who have series of their own: those of the file whose requests come first."""
OTHERS = "(others)"
"""The label of all others: who is not in the file could have any name."""


class UserMetrics:
    """Requests and tokens of users, in series whose number is bounded.

    Requests of nobody in particular are not counted here.

    Attributes:
        keys_reloads: times that the file of API keys was read.
        failures: what could not be counted against limits, by operation.
    """

    def __init__(self, registry: CollectorRegistry, keys: KeysFile) -> None:
        """Declare the metrics.

        Args:
            registry: where they are shown.
            keys: the users of the file.
        """
        self._keys = keys
        self._labels: set[str] = set()
        self.failures: Mapping[str, int] = {}
        registry.register(_LimitFailures(lambda: self.failures))
        self.keys_reloads = declare_reloads("pdrouter_keys_reloads", "file of API keys", registry)
        self._requests = Tally(
            "pdrouter_user_requests",
            "Requests of users that have ended, by status; none if there was no answer.",
            ("user", "model", "status"),
            registry=registry,
        )
        self._tokens = Tally(
            "pdrouter_user_tokens",
            "Tokens of users' prompts and answers, where they are counted, by kind (prompt, "
            "output).",
            ("user", "model", "kind"),
            registry=registry,
        )
        self._refusals = Tally(
            "pdrouter_limit_refusals",
            "Requests that a limit had no room for, by what is limited (requests, tokens, "
            "concurrent).",
            ("user", "model", "limit"),
            registry=registry,
        )

    def count_request(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        if record.refused_by is not None:
            user = self._name(record.user) if record.user else ""
            self._refusals.count(user, record.model, record.refused_by.quota.measure)
        if record.user:
            status = "" if record.status is None else str(record.status)
            self._requests.count(self._name(record.user), record.model, status)

    def count_answer(self, report: AnswerReport) -> None:
        """Count the tokens of a user's answer of a served model."""
        request, usage = report.request, report.usage
        if usage is None or not 0 < report.status < 400:
            return
        user = self._name(request.user)
        self._tokens.count(user, request.model, "prompt", number=usage.prompt_tokens)
        if usage.output_tokens:
            self._tokens.count(user, request.model, "output", number=usage.output_tokens)

    def _name(self, user: str) -> str:
        """Return the label of a user."""
        if user in self._labels:
            return user
        if len(self._labels) >= MOST_USERS or user not in self._keys.roster.users:
            return OTHERS
        self._labels.add(user)
        return user


class _LimitFailures(Collector):
    """What could not be counted against limits."""

    def __init__(self, read_failures: Callable[[], Mapping[str, int]]) -> None:
        self._read_failures = read_failures

    def collect(self) -> Iterable[Metric]:
        """Yield the metric as it stands now."""
        failures = CounterMetricFamily(
            "pdrouter_limit_failures",
            "What could not be counted against limits, by operation: take, correct, release, "
            "give-back; find: users of elsewhere who could not be looked up.",
            None,
            ("operation",),
        )
        for operation, count in dict(self._read_failures()).items():
            failures.add_metric((operation,), count)
        yield failures
