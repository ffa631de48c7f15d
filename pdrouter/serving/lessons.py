"""What side legs teach: which pods fail, which requests cannot be split, how long prompts are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.openai.kind import describe_kind
from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.cache_reports import CacheReports
from pdrouter.serving.leg_outcome import Attempt, LegAnswer
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.record import Observer, RequestRecord, Retry
from pdrouter.serving.unsplittable import UnsplittableKinds

log = logging.getLogger(__name__)

_PREFILL, _ENCODE = Leg.PREFILL, Leg.ENCODE
_OF_THE_POD = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class LegLessons:
    """Where all that is learnt from side legs goes.

    Attributes:
        outcomes: are told of attempts, so that pods that fail are avoided.
        kinds: knows which kinds of requests engines cannot serve in several legs.
        ratios: learns the length of prompts.
        observer: is told of attempts.
        caches: learn what pods have cached.
    """

    outcomes: PodOutcomes
    kinds: UnsplittableKinds
    ratios: TokenRatios
    observer: Observer
    caches: CacheReports

    def note_attempt(
        self, attempt: Attempt, request: InferenceRequest, model: str, record: RequestRecord
    ) -> None:
        """Learn from one attempt that has ended."""
        record.attempts.append(attempt)
        leg, failure, subject = attempt.leg, attempt.failure, None
        if leg is _ENCODE:
            record.encode_attempts += 1
        if failure is None:
            if leg is _PREFILL:
                record.prefill_pod = attempt.pod
        elif failure is FailureKind.STATUS:
            subject = describe_kind(request)
        self.outcomes.note_attempt(attempt, model, request.endpoint.path, subject)
        self.observer.leg_attempted(record, attempt)

    def note_retry(self, retry: Retry, record: RequestRecord) -> None:
        """Tell what comes of an attempt that has not carried the leg out."""
        record.retries = (*record.retries, retry)
        self.observer.leg_retried(record)

    def note_answer(
        self,
        answer: LegAnswer,
        attempts: Sequence[Attempt],
        request: InferenceRequest,
        model: str,
        record: RequestRecord,
    ) -> None:
        """Learn from a leg that an engine has carried out, with the last of these attempts."""
        for refuted in attempts[:-1]:
            self.outcomes.note_refuted(refuted, model)
        if self.kinds.evidence:
            kind = describe_kind(request)
            if kind is not None:
                self.kinds.note_served(model, kind)
        usage = answer.usage
        if usage is not None:
            record.prompt_tokens, record.cached_tokens = usage.prompt_tokens, usage.cached_tokens
            # What stands for media says nothing of texts.
            if not request.edits and request.listed_tokens is None:
                self.ratios.observe(request.model, len(request.prompt), usage.prompt_tokens)

    def note_failure(
        self,
        attempts: Sequence[Attempt],
        request: InferenceRequest,
        pods: ModelPods,
        record: RequestRecord,
    ) -> bool:
        """Learn from a leg that no pod has carried out with all these attempts.

        Returns:
            Whether the request is why: all pods fail its kind, and no other.
        """
        kind = describe_kind(request)
        if kind is None or not _all_say_the_same(attempts):
            return False
        failures, leg = self.outcomes.failures, attempts[-1].leg
        tried = {attempt.pod.uid for attempt in attempts}
        if not all(failures.is_well_but_for(uid, leg, kind) for uid in tried):
            return False
        known = {pod.uid for pod in pods.prefill}
        if not self.kinds.note_failed(pods.model, kind, tried, known):
            return False
        for uid in self.kinds.list_failed(pods.model, kind):
            failures.forgive(uid, leg, kind)
        log.warning(
            "served whole, since prefill engines fail it"
            if pods.whole
            else "prefill engines fail it, and no other can serve it",
            extra={
                "fields": {
                    "request_id": record.request_id,
                    "model": pods.model,
                    "path": kind.path,
                    "members": kind.members,
                    "message": attempts[-1].message,
                }
            },
        )
        return True


def _all_say_the_same(attempts: Sequence[Attempt]) -> bool:
    """Return whether all engines have answered with one status that speaks of an error of theirs.

    502, 503 and 504 speak of a pod that is away, asleep or busy.
    """
    statuses = {
        attempt.status if attempt.failure is FailureKind.STATUS else None for attempt in attempts
    }
    status = statuses.pop()
    return not statuses and status is not None and status >= 500 and status not in _OF_THE_POD
