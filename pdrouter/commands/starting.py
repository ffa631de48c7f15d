"""What is said when the router starts: to people at a terminal, and else in the log."""

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from pdrouter import __version__
from pdrouter.cluster.view import ClusterView
from pdrouter.settings import Settings, find_unknown_names, find_unused_names

log = logging.getLogger(__name__)

_SHOWN_MODELS = 4
_NO_STRATEGY = (
    "ROUTING_ALGORITHM is not set (for prefill and decode pods it is pd): for a request without a"
    " header routing-strategy, whose model's annotation names no strategy either, no pod is chosen."
    " It goes by the route in Envoy that matches its header model; where there is none, Envoy"
    " answers 503, no healthy upstream"
)


def report_names(environment: Mapping[str, str]) -> None:
    """Say which variables look like settings, but have no effect.

    Args:
        environment: variables.
    """
    for unknown in find_unknown_names(environment):
        if sys.stderr.isatty():
            print(f"pdrouter: {unknown}", file=sys.stderr)
        else:
            fields = {"variable": unknown.name, "nearest": unknown.nearest}
            log.warning("%s", unknown, extra={"fields": fields})
    unused = find_unused_names(environment)
    if unused:
        log.info(
            "aibrix reads these variables, pdrouter does not",
            extra={"fields": {"variables": unused}},
        )


def report_strategy(settings: Settings) -> None:
    """Say what happens to requests for which nobody names a strategy, if that is to pass.

    Args:
        settings: what the operator decided.
    """
    if settings.routing_algorithm is not None:
        return
    if sys.stderr.isatty():
        print(f"pdrouter: {_NO_STRATEGY}", file=sys.stderr)
    else:
        log.warning(_NO_STRATEGY)


def greet(text: str) -> bool:
    """Say to somebody at a terminal that the router serves.

    Returns:
        Whether the log, on the same terminal, need not say it again.
    """
    if not sys.stderr.isatty():
        return False
    print(text, file=sys.stderr, flush=True)
    return sys.stdout.isatty()


def describe_serving(grpc: Sequence[str], http: str, serves: str) -> str:
    """Return what somebody wants to know who has just started the router.

    Args:
        grpc: where Envoy connects.
        http: the HTTP port.
        serves: what is served.
    """
    return (
        f"pdrouter {__version__} serves {serves}: Envoy connects to {', '.join(grpc)};"
        f" see {make_url(http)}/debug/state and /metrics. Ctrl-C ends it."
    )


def make_url(address: str) -> str:
    """Return the URL by which this machine reaches an address that a port is bound to."""
    host, _, port = address.rpartition(":")
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http://{local}:{port}"


def describe_models(view: ClusterView) -> str:
    """Return the names of the models, with their engines counted."""
    left_out = [f"{len(view.left_out)} left out"] if view.left_out else []
    if not view.names:
        return ", ".join(["no models yet", *left_out])
    shown = [_describe_model(view, name) for name in sorted(view.names)[:_SHOWN_MODELS]]
    if len(view.names) > _SHOWN_MODELS:
        shown.append(f"{len(view.names) - _SHOWN_MODELS} more")
    return ", ".join([*shown, *left_out])


def _describe_model(view: ClusterView, name: str) -> str:
    roles = Counter(pod.role.value for pod in view.models[name].pods)
    counts = [f"{count} {role}" for role, count in sorted(roles.items(), reverse=True)]
    return f"{name} ({', '.join(counts)})"
