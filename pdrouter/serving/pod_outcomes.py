"""Tells the memory of failures what has become of each leg, and says who is ejected."""

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import PEER_CHANGED, Leg
from pdrouter.load.failures import CONNECT, FailureMemory, Part
from pdrouter.load.proofs import Proofs
from pdrouter.serving.last_leg import ATTEMPTS, Judgement, Verdict, judge_answer
from pdrouter.serving.leg_outcome import Attempt, LegAnswer
from pdrouter.serving.statuses import BUSY, Speaks

log = logging.getLogger(__name__)

_DECODE = Leg.DECODE
_NUMBERS = (float, int)
_FIRST_ERROR, _NOT_FOUND = 400, 404
_WITH_IDS = frozenset({"/v1/responses"})
_OF_THE_KEY = frozenset({401, 403, 407})
_OF_NO_POD = frozenset({"too-large", "late", PEER_CHANGED})
_MISSING = frozenset({"null-params", "empty-blocks"})


class SentLeg(msgspec.Struct, frozen=True):
    """A leg that Envoy carries out.

    Attributes:
        pod: where it was sent.
        model: the model or adapter, by the engine's name.
        path: what was asked for.
        split: whether pods of side legs have accepted the same request: its body has their handle.
        began: when it was sent, on the clock of the memory.
        second: where Envoy sends it if it cannot connect to the first; None if nowhere.
    """

    pod: Pod
    model: str
    path: str
    split: bool
    began: float
    second: Pod | None = None

    def is_sent_too_often(self, attempts: object) -> bool:
        """Return whether Envoy has sent a handle more often than there are pods to send it to.

        Args:
            attempts: its own count of tries, if it tells that.
        """
        if not self.split or not isinstance(attempts, _NUMBERS):
            return False
        return attempts > (1 if self.second is None else 2)


class PodOutcomes:
    """Where all outcomes go, whoever saw them."""

    def __init__(self, failures: FailureMemory, proofs: Proofs | None = None) -> None:
        """Set up.

        Args:
            failures: remembers them.
            proofs: remembers who has served what; None for a memory of its own.
        """
        self.failures = failures
        self._proofs = proofs or Proofs(failures.clock)

    def send(
        self, pod: Pod, model: str, path: str, *, split: bool, second: Pod | None = None
    ) -> SentLeg:
        """Return what to remember of a leg that Envoy is given now."""
        return SentLeg(pod, model, path, split, self.failures.clock(), second)

    def note_attempt(
        self, attempt: Attempt, model: str, path: str, subject: Hashable = None
    ) -> None:
        """Take a try of a side leg.

        Args:
            attempt: the try.
            model: the model or adapter, by the engine's name.
            path: what was asked for.
            subject: what kind of request it was, if that may be why it failed.
        """
        failures, pod, leg = self.failures, attempt.pod, attempt.leg
        began = failures.clock() - attempt.seconds
        match attempt.speaks:
            case Speaks.DONE:
                self._proofs.note_served(leg, pod.namespace, model, path, pod.uid)
                self._succeed(pod, leg, began, model)
            case Speaks.REQUEST:
                self._succeed(pod, leg, began, model)
            case Speaks.POD if attempt.status in BUSY:
                self._fail(pod, leg, f"status-{attempt.status}", began)
            case Speaks.POD if self._is_of_the_pod(attempt, model, path):
                self._fail(pod, leg, f"status-{attempt.status}", began, model=model)
            case Speaks.FAILURE if attempt.hurried:
                self.note_silence(pod, leg, began)
            case Speaks.FAILURE if attempt.failure is FailureKind.TIMEOUT:
                self._time_out(pod, leg, "timeout", began)
            case Speaks.FAILURE:
                self._fail(pod, leg, _name_cause(attempt), began, subject=subject)
        if attempt.retry_after_s is not None and attempt.speaks is not Speaks.REQUEST:
            failures.hold(pod.uid, leg, attempt.retry_after_s)

    def note_refuted(self, attempt: Attempt, model: str) -> None:
        """Take a try whose pod said that the key was wrong, before another took it."""
        if attempt.status in _OF_THE_KEY:
            began = self.failures.clock() - attempt.seconds
            self._fail(attempt.pod, attempt.leg, f"status-{attempt.status}", began, model=model)

    def note_usable(self, answer: LegAnswer, model: str) -> None:
        """Take an answer to a side leg that goes to the engine of the next one.

        Args:
            answer: the answer.
            model: the model or adapter, by the engine's name.
        """
        pod, usage = answer.pod, answer.usage
        if usage is not None:
            self._proofs.note_handle(pod.namespace, model, pod.uid, usage.prompt_tokens)

    def note_unusable(self, answer: LegAnswer, model: str, reason: str) -> None:
        """Take an answer to a side leg that the engine of the next one cannot work with.

        Engines give no handle for short prompts. One that gives none for a prompt for which another
        pod has given one is broken, or not set up to. The size of a handle depends on the request,
        and its age on the router.
        """
        pod, leg = answer.pod, answer.leg
        if reason in _OF_NO_POD or (
            reason in _MISSING and not self._has_another_given(answer, model)
        ):
            return
        cause = f"handoff-{reason}"
        if self.failures.note_worthless(pod.uid, leg, cause, self.failures.clock()):
            _tell_ejected(pod, leg, cause)

    def note_second(self, sent: SentLeg, attributes: Mapping[str, Any]) -> bool:
        """Return whether Envoy has come to the second pod; then it could not connect to the first.

        Unless that was its first try: it does not know the first pod, then.
        """
        second = sent.second
        if second is None or attributes.get("upstream.address") != second.address:
            return False
        if attributes.get(ATTEMPTS) != 1:
            self._fail(sent.pod, Leg.DECODE, CONNECT, sent.began)
        return True

    def note_answer(
        self, sent: SentLeg, status: int, headers: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> Judgement:
        """Take the head of the answer to a leg that Envoy has carried out."""
        judgement = judge_answer(status, headers, attributes)
        pod, began = sent.pod, sent.began
        reached = attributes.get("upstream.address")
        if reached and reached != pod.address:
            return judgement  # Envoy has sent it elsewhere.
        match judgement.verdict:
            case Verdict.ANSWERED:
                if status < _FIRST_ERROR:
                    path = sent.path
                    self._proofs.note_served(_DECODE, pod.namespace, sent.model, path, pod.uid)
                self._succeed(pod, _DECODE, began, sent.model)
            case Verdict.FAILED:
                self._fail(pod, Leg.DECODE, judgement.cause, began, path=sent.path)
            case Verdict.TIMED_OUT:
                self._time_out(pod, Leg.DECODE, judgement.cause, began, path=sent.path)
            case Verdict.LACKING if sent.split or self._is_of_the_last_pod(sent, status):
                self._fail(pod, Leg.DECODE, judgement.cause, began, model=sent.model)
        if judgement.retry_after_s is not None:
            self.failures.hold(pod.uid, Leg.DECODE, judgement.retry_after_s)
        return judgement

    def note_silence(self, pod: Pod, leg: Leg, began: float) -> None:
        """Take a leg that the client gave up before its pod had answered."""
        if self.failures.note_silence(pod.uid, leg, "silence", began):
            _tell_ejected(pod, leg, "silence")

    def note_asked(self, pod: Pod, part: Part, cause: str | None) -> None:
        """Take what has become of a request of the router's own; None if it was not sent."""
        if self.failures.note_asked(part, cause):
            _tell_ejected(pod, part.leg, cause or "")

    def note_cut(self, pod: Pod, cause: str) -> None:
        """Take an answer that its pod has begun and broken off."""
        self._fail(pod, Leg.DECODE, cause, self.failures.clock())

    def _is_of_the_pod(self, attempt: Attempt, model: str, path: str) -> bool:
        """Return whether a pod lacks what it says it lacks, and not all pods do.

        A key is the client's. A path may be one that no engine of this release has.
        """
        if attempt.status in _OF_THE_KEY:
            return False
        if attempt.status == _NOT_FOUND and model in attempt.message:
            return True
        return self._has_another_served(attempt.pod, attempt.leg, model, path)

    def _is_of_the_last_pod(self, sent: SentLeg, status: int) -> bool:
        """Return whether a pod lacks the model of a whole request, and another does not.

        Where an answer may be asked for by its id, that is what may not be found.
        """
        return (
            status == _NOT_FOUND
            and sent.path not in _WITH_IDS
            and self._has_another_served(sent.pod, Leg.DECODE, sent.model, sent.path)
        )

    def _has_another_given(self, answer: LegAnswer, model: str) -> bool:
        pod = answer.pod
        return self._proofs.has_another_given(pod.namespace, model, pod.uid, _count_tokens(answer))

    def _has_another_served(self, pod: Pod, leg: Leg, model: str, path: str) -> bool:
        return self._proofs.has_another_served(leg, pod.namespace, model, path, pod.uid)

    def _time_out(self, pod: Pod, leg: Leg, cause: str, began: float, *, path: str = "") -> None:
        if self.failures.note_timeout(pod.uid, leg, cause, began, path=path):
            _tell_ejected(pod, leg, cause)

    def _succeed(self, pod: Pod, leg: Leg, began: float, model: str) -> None:
        if self.failures.note_success(pod.uid, leg, began, model):
            log.info("pod is let in again", extra={"fields": _name(pod, leg)})

    def _fail(
        self,
        pod: Pod,
        leg: Leg,
        cause: str,
        began: float,
        *,
        model: str = "",
        subject: Hashable = None,
        path: str = "",
    ) -> None:
        # Who cannot be connected to is none of the ranks behind the address.
        for uid in pod.same_address if cause == CONNECT else (pod.uid,):
            if self.failures.note_failure(
                uid, leg, cause, began, model=model, subject=subject, path=path
            ):
                _tell_ejected(pod, leg, cause)


def _count_tokens(answer: LegAnswer) -> int:
    """Return how long the prompt was, as the engine says; 0 if it does not."""
    return 0 if answer.usage is None else answer.usage.prompt_tokens


def _name_cause(attempt: Attempt) -> str:
    if attempt.failure is FailureKind.STATUS:
        return f"status-{attempt.status}"
    return CONNECT if attempt.failure is FailureKind.CONNECT else str(attempt.failure)


def _tell_ejected(pod: Pod, leg: Leg, cause: str) -> None:
    log.warning("pod is ejected", extra={"fields": {**_name(pod, leg), "cause": cause}})


def _name(pod: Pod, leg: Leg) -> dict[str, str]:
    return {
        "pod": pod.name,
        "namespace": pod.namespace,
        "address": pod.address,
        "model": pod.model,
        "leg": leg,
    }
