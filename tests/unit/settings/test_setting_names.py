"""Variables that look like settings: which are said to have no effect, and what was meant."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pdrouter.settings import declarations, find_unknown_names, find_unused_names
from pdrouter.settings.aibrix import UNUSED_AIBRIX_VARIABLES

VARIABLES = [each.variable for each in declarations().values()]
OWN_VARIABLES = [
    name for name in VARIABLES if name.startswith(("PDROUTER_", "AIBRIX_", "ROUTING_"))
]
"""Others are the platform's, and have neighbours that mean something to other programs."""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ROUTING_ALGORITM", "ROUTING_ALGORITHM"),
        ("ROUTING_ALGORITHMS", "ROUTING_ALGORITHM"),
        ("routing-algorithm", "ROUTING_ALGORITHM"),
        ("AIBRIX_ROUTING_ALGORITHM", "ROUTING_ALGORITHM"),
        ("PDROUTER_ROUTING_ALGORITHM", "ROUTING_ALGORITHM"),
        ("PDROUTER_MAXWAIT", "PDROUTER_MAX_WAIT"),
        ("AIBRIX_MAX_WAIT", "PDROUTER_MAX_WAIT"),
        ("PD_ROUTER_MAX_WAIT", "PDROUTER_MAX_WAIT"),
        ("pdrouter_drain", "PDROUTER_DRAIN"),
        ("PREFILL_REQUEST_TIMEOUT", "AIBRIX_PREFILL_REQUEST_TIMEOUT"),
        ("PDROUTER_PREFILL_REQUEST_TIMEOUT", "AIBRIX_PREFILL_REQUEST_TIMEOUT"),
        # As its option is called.
        ("PDROUTER_PREFILL_TIMEOUT", "AIBRIX_PREFILL_REQUEST_TIMEOUT"),
        ("PDROUTER_LOGLEVEL", "PDROUTER_LOG_LEVEL"),
        ("PDROUTER_KUBECONFIG", "KUBECONFIG"),
        ("PDROUTER_BEARER_TOKEN", "AIBRIX_AUTH_BEARER_TOKEN"),
        ("PDROUTER_FAVOURITE_COLOUR", None),
        ("PDROUTER_LISTENER", None),
    ],
)
def test_an_unknown_name_is_found_with_what_was_meant(name: str, nearest: str | None) -> None:
    (unknown,) = find_unknown_names({name: "1", "PATH": "/bin"})
    assert (unknown.name, unknown.nearest) == (name, nearest)
    assert name in str(unknown)
    assert (nearest or "pdrouter settings") in str(unknown)


@given(st.sampled_from(OWN_VARIABLES), st.data())
def test_a_name_that_lacks_a_letter_is_found(variable: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(variable.index("_") + 1, len(variable) - 1), label="letter")
    written = variable[:at] + variable[at + 1 :]
    assume(written not in VARIABLES)  # PDROUTER_REPLICAS less its last letter is another one.
    (unknown,) = find_unknown_names({written: "1"})
    assert unknown.nearest == variable


@pytest.mark.parametrize(
    "environment",
    [
        dict.fromkeys(VARIABLES, "1"),
        dict.fromkeys(UNUSED_AIBRIX_VARIABLES, "1"),
        {"ROUTING_ALGORITM": " ", "PDROUTER_MAXWAIT": ""},
        # Beside the right one, it may be another program's.
        {"ROUTING_ALGORITHM": "pd", "ROUTING_ALGORITHMS": "x"},
        {"PATH": "/bin", "KUBE_CONFIG": "f", "LOG_LEVEL": "info", "WORKERS": "2", "POD_NAME": "p"},
        # What Kubernetes sets for the Services of the namespace.
        {
            "PDROUTER_SERVICE_HOST": "10.0.0.1",
            "PDROUTER_SERVICE_PORT": "50052",
            "PDROUTER_SERVICE_PORT_GRPC": "50052",
            "PDROUTER_PORT": "tcp://10.0.0.1:50052",
            "PDROUTER_PORT_50052_TCP": "tcp://10.0.0.1:50052",
            "PDROUTER_PORT_50052_TCP_PROTO": "tcp",
            "PDROUTER_PORT_50052_TCP_PORT": "50052",
            "PDROUTER_PORT_50052_TCP_ADDR": "10.0.0.1",
            "AIBRIX_REDIS_MASTER_SERVICE_HOST": "10.0.0.2",
            "AIBRIX_REDIS_MASTER_PORT": "tcp://10.0.0.2:6379",
        },
    ],
)
def test_what_others_set_is_not_taken_for_a_setting(environment: dict[str, str]) -> None:
    assert find_unknown_names(environment) == ()


def test_aibrix_variables_without_a_use_are_known_as_such() -> None:
    environment = {"AIBRIX_TTFT_THRESHOLD_S": "1", "AIBRIX_STATESYNC_ENABLED": "false", "A": "b"}
    assert find_unused_names(environment) == (
        "AIBRIX_STATESYNC_ENABLED",
        "AIBRIX_TTFT_THRESHOLD_S",
    )
    assert not UNUSED_AIBRIX_VARIABLES & set(VARIABLES)
