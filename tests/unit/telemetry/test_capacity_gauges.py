"""How fast and how full pods are is on the metrics page as far as it is known."""

from factories import MODEL, make_pod
from prometheus_client.parser import text_string_to_metric_families

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.samples import EngineSample
from pdrouter.telemetry.requests import RequestTelemetry

P, D, E = make_pod("p"), make_pod("d", Role.DECODE), make_pod("e", Role.ENCODE)


class Page:
    """The metrics of a router that knows some pods."""

    def __init__(self, *pods: Pod) -> None:
        self.now = 0.0
        self.cache = PodCache()
        self.cache.replace(pods)
        self.ledger = Ledger(PrefillRates(8000), lambda: self.now)
        self.samples: dict[str, EngineSample] = {}
        wanted = PodsWanted(self.ledger, self.samples)
        self.telemetry = RequestTelemetry(self.cache, self.ledger, wanted=wanted)

    def read(self, name: str) -> dict[str, float]:
        """The values of a metric, by the name of the pod."""
        page = self.telemetry.metrics.render().decode()
        return {
            sample.labels["pod"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and sample.labels["model"] == MODEL
        }


def test_the_prefill_wait_is_that_of_the_legs_on_a_pod() -> None:
    page = Page(P, D, E)
    page.ledger.start(Leg.PREFILL, P.uid, 16_000)

    assert page.read("pdrouter_pod_prefill_wait_seconds") == {"p": 2.0}
    page.now = 0.5
    assert page.read("pdrouter_pod_prefill_wait_seconds") == {"p": 1.5}


def test_the_prefill_speed_is_known_once_a_leg_is_done() -> None:
    page = Page(P, D, E)
    scope = page.ledger.start(Leg.PREFILL, P.uid, 2000)
    assert page.read("pdrouter_pod_prefill_tokens_per_second") == {}
    page.now = 0.25
    scope.complete()
    scope.release()

    (speed,) = page.read("pdrouter_pod_prefill_tokens_per_second").values()
    assert 7999 < speed < 8001


def test_decode_pods_have_a_speed_and_room_as_far_as_engines_say() -> None:
    page = Page(P, D, E)
    assert page.read("pdrouter_pod_kv_usage_ratio") == {}
    page.samples[D.uid] = EngineSample(0.0, kv_usage=0.4)
    page.samples[P.uid] = page.samples[D.uid]
    assert page.read("pdrouter_pod_kv_usage_ratio") == {"d": 0.4}
    assert page.read("pdrouter_pod_kv_free_tokens") == {}
    assert page.read("pdrouter_pod_decode_tokens_per_second") == {}

    page.samples[D.uid] = EngineSample(
        0.0, kv_usage=0.4, kv_capacity_tokens=1000, generated_tokens_per_s=55.0
    )
    assert page.read("pdrouter_pod_kv_free_tokens") == {"d": 600}
    assert page.read("pdrouter_pod_decode_tokens_per_second") == {"d": 55.0}

    # What is in flight will need more than the engine uses now.
    page.ledger.start(Leg.DECODE, D.uid, 700)
    assert page.read("pdrouter_pod_kv_usage_ratio") == {"d": 0.7}
    assert page.read("pdrouter_pod_kv_free_tokens") == {"d": 300}
    page.ledger.start(Leg.DECODE, D.uid, 700)
    assert page.read("pdrouter_pod_kv_free_tokens") == {"d": 0}


def test_series_end_with_their_pod() -> None:
    page = Page(P, D)
    with page.ledger.start(Leg.PREFILL, P.uid, 2000) as scope:
        scope.complete()
    page.samples[D.uid] = EngineSample(0.0, kv_usage=0.4, kv_capacity_tokens=1000)
    assert b'pod="p"' in page.telemetry.metrics.render()
    assert b"pdrouter_pods_wanted{" in page.telemetry.metrics.render()
    page.cache.replace(())

    text = page.telemetry.metrics.render()
    assert b'pod="p"' not in text
    assert b"pdrouter_pods_wanted{" not in text
