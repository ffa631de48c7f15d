"""Counters of files that are read again when they change."""

from prometheus_client import CollectorRegistry, Counter


def declare_reloads(name: str, file: str, registry: CollectorRegistry) -> Counter:
    """Declare a counter. It is shown from 0 on: where the first mistake makes it, none is seen.

    Args:
        name: name of the metric.
        file: which file it is, for people.
        registry: where it is shown.
    """
    text = f"Times that the changed {file} was read, by result (ok, broken)."
    reloads = Counter(name, text, ("result",), registry=registry)
    for result in ("ok", "broken"):
        reloads.labels(result)
    return reloads
