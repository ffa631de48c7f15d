"""What clients are told of a side leg that no pod has carried out."""

import pytest
from factories import make_attempt, make_pod
from msgspec import structs

from pdrouter.engine_http.failures import FailureKind
from pdrouter.serving.leg_outcome import LegFailed
from pdrouter.serving.refusals import describe_failure


@pytest.mark.parametrize(
    ("asked", "told"),
    [((None, None), "5"), ((7.0, 2.2), "3"), ((None, 40.0), "40"), ((0.0,), "1")],
)
def test_clients_come_again_when_the_first_pod_wants_to_be_asked(
    asked: tuple[float | None, ...], told: str
) -> None:
    busy = make_attempt(make_pod(), status=503, failure=FailureKind.STATUS)
    attempts = tuple(structs.replace(busy, retry_after_s=each) for each in asked)
    rejected = describe_failure(LegFailed(attempts), expose_pods=True)
    assert (rejected.status, rejected.code) == (503, "prefill_unavailable")
    assert dict(rejected.headers)["retry-after"] == told
