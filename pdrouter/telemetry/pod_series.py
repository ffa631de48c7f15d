"""What is counted for each pod under aibrix's names, with the labels by which aibrix tells pods."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, Metric

from pdrouter.cluster.pods import Pod

_LABELS = ("namespace", "pod", "model", "engine_type", "roleset", "role", "role_replica_index")
_REPLICA_INDEX = "stormservice.orchestration.aibrix.ai/role-replica-index"
_PART_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_TOTAL_MS = (100, 250, 500, 1000, 5000, 20000, 60000)
_PART_S = tuple(bound / 1000 for bound in _PART_MS)
_TOTAL_S = tuple(bound / 1000 for bound in _TOTAL_MS)
_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

_Labels: TypeAlias = tuple[str, ...]
"""Values of the labels that say which pod, in the order of `_LABELS`."""


class Buckets:
    """How often a number was in each of several ranges."""

    __slots__ = ("_bounds", "counts")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with nothing.

        Args:
            bounds: where ranges begin, but for the first.
        """
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)

    def count(self, number: float) -> None:
        """Count a number in its range."""
        self.counts[bisect_right(self._bounds, number)] += 1


class PodSeries:
    """What is counted for one pod, or for the requests of a model whose pod Envoy chooses.

    Attributes:
        pod: the pod as it was last seen.
        prefill_choices: how often it was chosen for a prefill leg.
        decode_choices: how often it was chosen for a last leg.
        input_tokens: tokens of prompts.
        output_tokens: tokens of answers.
        routing_times: seconds to choose.
        prefill_times: seconds of the prefill leg.
        total_times: seconds of whole requests.
        prompts: tokens of each prompt.
        completions: tokens of each answer.
        first_token_times: seconds to the first token of streams.
        output_token_times: seconds per token of streams.
    """

    def __init__(self) -> None:
        self.pod: Pod | None = None
        self.prefill_choices = 0
        self.decode_choices = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.routing_times = Buckets(_PART_S)
        self.prefill_times = Buckets(_PART_S)
        self.total_times = Buckets(_TOTAL_S)
        self.prompts = Buckets(_TOKENS)
        self.completions = Buckets(_TOKENS)
        self.first_token_times = Buckets(_PART_S)
        self.output_token_times = Buckets(_PART_S)


_COUNTERS = (
    ("pd_selected_prefill_pod", "Choices of a prefill pod.", "prefill_choices"),
    ("pd_selected_decode_pod", "Choices of a decode pod.", "decode_choices"),
    ("gateway_input_tokens", "Tokens of prompts.", "input_tokens"),
    ("gateway_output_tokens", "Tokens of answers.", "output_tokens"),
)
"""Name, text and attribute of each counter."""


def _name_ranges(bounds: Sequence[int], unit: str) -> tuple[str, ...]:
    names = (f"{low}-{high}{unit}" for low, high in pairwise((0, *bounds)))
    return (*names, f"{bounds[-1]}{unit}+")


_PARTS, _TOTALS = _name_ranges(_PART_MS, "ms"), _name_ranges(_TOTAL_MS, "ms")
_SIZES = _name_ranges(_TOKENS, "")
_RANGES = (
    ("gateway_routing_time_bucket", "Requests by the time to choose.", "routing_times", _PARTS),
    ("gateway_prefill_time_bucket", "Requests by the prefill leg's time.", "prefill_times", _PARTS),
    ("gateway_total_time_bucket", "Requests by their whole time.", "total_times", _TOTALS),
    ("gateway_prompt_token_bucket", "Requests by the prompt's tokens.", "prompts", _SIZES),
    ("gateway_completion_token_bucket", "Requests by the answer's tokens.", "completions", _SIZES),
    ("gateway_ttft_bucket", "Streams by the time to the first token.", "first_token_times", _PARTS),
    (
        "gateway_tpot_bucket",
        "Streams by the time per output token.",
        "output_token_times",
        _PARTS,
    ),
)
"""Name, text, attribute and ranges of each counter that has a label for the range."""


class AllPodSeries:
    """The series of all pods. One without a count is not shown."""

    def __init__(self, constants: Mapping[str, str]) -> None:
        """Begin with none.

        Args:
            constants: further labels, whose values never change.
        """
        self._constants = constants
        self._series: dict[_Labels, PodSeries] = {}
        self._by_uid: dict[tuple[str, str], PodSeries] = {}

    def find(self, pod: Pod | None, model: str) -> PodSeries:
        """Return what is counted for a pod and a model; no pod is those that Envoy chooses.

        Who gets it counts at once: it may be forgotten.
        """
        key = ("" if pod is None else pod.uid, model)
        series = self._by_uid.get(key)
        if series is None or series.pod is not pod:
            series = self._series.setdefault(_label(pod, model), PodSeries())
            series.pod = pod
            self._by_uid[key] = series
        return series

    def forget_others(self, known: Collection[tuple[str, str]]) -> None:
        """Forget what was counted for pods that are not among these (namespace, name)."""
        self._forget([key for key in self._series.copy() if key[1] and key[:2] not in known])

    def forget_model(self, model: str) -> None:
        """Forget what was counted for a model."""
        self._forget([key for key in self._series.copy() if key[2] == model])

    def _forget(self, gone: Collection[_Labels]) -> None:
        for labels in gone:
            self._series.pop(labels, None)
        if gone:
            self._by_uid.clear()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand now."""
        series, constants = self._series.copy(), tuple(self._constants.values())
        names = (*_LABELS, *self._constants)
        for name, text, attribute in _COUNTERS:
            family = CounterMetricFamily(name, text, None, names)
            for labels, one in series.items():
                count: int = getattr(one, attribute)
                if count:
                    family.add_metric((*labels, *constants), count)
            yield family
        names = (*_LABELS, "bucket", *self._constants)
        for name, text, attribute, ranges in _RANGES:
            family = CounterMetricFamily(name, text, None, names)
            for labels, one in series.items():
                buckets: Buckets = getattr(one, attribute)
                for bucket, count in zip(ranges, buckets.counts, strict=True):
                    if count:
                        family.add_metric((*labels, bucket, *constants), count)
            yield family


def _label(pod: Pod | None, model: str) -> _Labels:
    if pod is None:
        return "", "", model, "", "", "", ""
    index = pod.labels.get(_REPLICA_INDEX, "")
    return pod.namespace, pod.name, model, pod.engine, pod.roleset, pod.role, index
