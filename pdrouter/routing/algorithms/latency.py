"""The algorithm `least-latency`: the pod on which a usual request has taken least, of late."""

from collections.abc import Iterable, Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.load.samples import EngineSample, RequestMeans
from pdrouter.routing.algorithms.engine_numbers import add_recent
from pdrouter.routing.algorithms.first_token import predict_first_tokens
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.scoring import Measures

_USUAL_PROMPT, _USUAL_OUTPUT = 10.0, 100.0
"""Tokens of a usual request where no pod says them, as aibrix has them."""


class LeastLatency:
    """Measures the seconds of waiting, computing and generating of a usual request.

    The means of each pod are taken to the lengths of usual requests: their mean over all pods. A
    pod that has had no request yet, but would say so, counts as the best of the others; it has to
    be tried. Where no engine says any of it, the predicted time to the first token counts.
    """

    name = "least-latency"
    unit = "latency_s"
    most = False

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the seconds on each pod."""
        samples = [request.state.samples.get(pod.uid) for pod in pods]
        known = [None if sample is None else sample.means for sample in samples]
        if not any(known):
            note = "no engine says what requests take: the predicted time to the first token"
            return Measures(predict_first_tokens(pods, request, leg), note)
        prompt = _find_usual((means.prompt_tokens for means in known if means), _USUAL_PROMPT)
        output = _find_usual((means.output_tokens for means in known if means), _USUAL_OUTPUT)
        values = [
            _measure(sample, means, prompt, output)
            for sample, means in zip(samples, known, strict=True)
        ]
        best = min((value for value in values if value is not None), default=0.0)
        values = [
            best if value is None and means is not None else value
            for value, means in zip(values, known, strict=True)
        ]
        unsaid = values.count(None)
        note = f"{unsaid} of {len(pods)} engines do not say what requests take" if unsaid else ""
        return Measures(add_recent(values, pods, request, leg), note)


def _find_usual(tokens: Iterable[float | None], default: float) -> float:
    positive = [number for number in tokens if number]
    return sum(positive) / len(positive) if positive else default


def _measure(
    sample: EngineSample | None, means: RequestMeans | None, prompt: float, output: float
) -> float | None:
    """Return the seconds of a usual request; None as long as there was none."""
    if sample is None or means is None or (means.prefill_s is None and means.decode_s is None):
        return None
    # Who came before has waited; who comes now does if somebody waits.
    queue_s = 0.0 if sample.waiting == 0 else means.queue_s or 0.0
    prefill_s = (means.prefill_s or 0.0) * prompt / (means.prompt_tokens or prompt)
    decode_s = (means.decode_s or 0.0) * output / (means.output_tokens or output)
    return queue_s + prefill_s + decode_s
