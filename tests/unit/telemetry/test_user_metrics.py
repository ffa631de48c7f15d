"""What is counted of users: bounded, whoever they say they are, and never with a key."""

from prometheus_client import CollectorRegistry
from rosters import keys_of

from pdrouter.openai.usage import Usage
from pdrouter.serving.answers import AnswerReport, RoutedRequest
from pdrouter.serving.record import RequestRecord
from pdrouter.telemetry.user_metrics import MOST_USERS, OTHERS, UserMetrics
from pdrouter.users.counters import Demand, Measure, Quota
from pdrouter.users.user import User


def create(*names: str) -> tuple[UserMetrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return UserMetrics(registry, keys_of(*map(User, names))), registry


def test_requests_and_tokens_are_counted_for_their_users() -> None:
    metrics, registry = create("ann")
    metrics.count_request(RequestRecord("r", user="ann", model="m", status=200))
    metrics.count_request(RequestRecord("r", user="eve", model="m", status=200))
    metrics.count_request(RequestRecord("r", model="m", status=200))
    request = RoutedRequest("r", "m", user="ann")
    metrics.count_answer(AnswerReport(request, "", 200, Usage(30, None, 12), None, None))
    metrics.count_answer(AnswerReport(request, "", 500, Usage(30, None, 12), None, None))
    metrics.count_answer(AnswerReport(RoutedRequest("r", "m"), "", 200, Usage(9, 0, 9), None, None))

    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model": "m", **labels})

    assert read("pdrouter_user_requests_total", user="ann", status="200") == 1
    assert read("pdrouter_user_requests_total", user=OTHERS, status="200") == 1
    assert read("pdrouter_user_requests_total", user="", status="200") is None
    assert read("pdrouter_user_tokens_total", user="ann", kind="prompt") == 30
    assert read("pdrouter_user_tokens_total", user="ann", kind="output") == 12
    assert read("pdrouter_user_tokens_total", user="", kind="prompt") is None


def test_refusals_are_counted_by_what_had_no_room() -> None:
    metrics, registry = create("ann")
    for user in ("ann", ""):
        refused = Demand(Quota("n", Measure.TOKENS, 1, 60.0))
        record = RequestRecord("r", user=user, model="m", status=429, refused_by=refused)
        metrics.count_request(record)
        labels = {"user": user, "model": "m", "limit": "tokens"}
        assert registry.get_sample_value("pdrouter_limit_refusals_total", labels) == 1


def test_as_many_users_have_series_as_may() -> None:
    names = [f"u{number}" for number in range(MOST_USERS + 50)]
    metrics, _ = create(*names)
    for name in (*names, *(f"claimed-{number}" for number in range(1000))):
        metrics.count_request(RequestRecord("r", user=name, model="m", status=200))
    counted = metrics._requests.counts
    assert len(counted) == MOST_USERS + 1
    assert counted[OTHERS, "m", "200"] == 1050
