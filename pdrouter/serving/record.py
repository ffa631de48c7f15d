"""The record of one request: what was chosen, why, and what it cost."""

import time
from enum import StrEnum
from typing import Protocol

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.openai.usage import Usage
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Decision, DecisionKind
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.steps import StepTimes
from pdrouter.serving.trace import RequestTrace
from pdrouter.users.counters import Demand, Standing, Taken


class Retry(StrEnum):
    """What comes of a failed try of a side leg, where there is another pod to try."""

    SAME_ROLESET = "same-roleset"
    """It is tried on a pod of the same roleset."""
    OTHER_PAIR = "other-pair"
    """It is tried on a pair of another roleset or version: the last leg has a new pod too."""
    OVER_BUDGET = "over-budget"
    """It is not tried again: too many of the model's requests are."""


class Outcome(StrEnum):
    """How a request ended, as far as the router can see."""

    OK = "ok"
    """The engine answered with a status below 400."""
    ENGINE_ERROR = "engine-error"
    """An engine answered with a status of 400 or more."""
    ANSWERED = "answered"
    """The router answered itself, without an error."""
    REJECTED = "rejected"
    """The router refused the request with a 4xx status."""
    FAILED = "failed"
    """The router answered with a 5xx status."""
    LOCAL_REPLY = "local-reply"
    """Envoy answered: a filter refused the request, or no engine could be reached."""
    CLIENT_LEFT = "client-left"
    """The stream ended before there was an answer: the client left, or Envoy's timeout struck."""
    PROTOCOL_ERROR = "protocol-error"
    """Envoy's side of the stream said something that it must not say."""


# Looked up once: records are read again and again.
_ENCODE = Leg.ENCODE
_STANDING = (None, Outcome.OK)
_DISAGGREGATED = DecisionKind.DISAGGREGATED


class RequestRecord(msgspec.Struct):
    """Filled in while a request goes its way. All times are in seconds.

    Attributes:
        request_id: the router's own id, unique to the request.
        client_request_id: the id that came with the request.
        method: HTTP method.
        path: path without query string.
        user: name of who asks: that of the key, or the one that was claimed where that is trusted;
            empty for nobody in particular.
        standings: what is left of each limit that it has to keep to.
        refused_by: what a limit had no room for; None if there was room for all.
        reserved: the tokens that were taken for it; None if no limit counts them.
        reserved_prompt: those of them that are its prompt's.
        model: name of the model, once it is known to be served.
        stream: whether the answer is streamed.
        body_bytes: size of the client's body.
        profile: name of the profile of the model's configuration, where the router chose it.
        strategy: name of the strategy; None where the request passes without one.
        asked_strategy: the strategy as it was asked for: a name, or a list as it was written.
        decision: the pods and the reason; None before the choice.
        forwarded: whether the request was sent on: else the decision was not carried out, unless
            the side legs have left nothing to do.
        unseen: whether Envoy has said that no engine got it then.
        aggregated: why the decode pod serves the request whole, whether by choice or after the
            prefill leg failed; empty where it does not.
        handoff: why the prefill answer was of no use to the decode leg; empty if it was.
        prefill_pod: the last pod that took the prefill leg and answered, or refused, it.
        kv_source: the pod from which that one was to have the beginning of the prompt; None for
            none.
        prompt_tokens: tokens of the prompt, as an engine has counted them; None if none has said.
        cached_tokens: tokens of the prompt that the pod of the prefill leg had cached; None if it
            did not say, or there was no such leg.
        prefixes_gone: blocks of prompts that the pod of the prefill leg has been seen to have no
            more.
        prefixes_found: blocks of this prompt that it had, and was not known to have.
        predicted_prefill_s: predicted time until the last pod of the prefill leg would have carried
            it out, its queue included; None where there was no such leg.
        deadline: when the first token is due; None for no such time.
        priority: the number that says so to engines; None if none is told.
        ranked_legs: legs whose engines have been told, one for each try.
        attempts: tries of the side legs.
        encode_attempts: how many of them were to encode an item.
        retries: where further ones went, or that there may be none.
        steps: time by step.
        overhead_s: time in the router's own code, without waiting for anybody else.
        output_tokens: tokens of the answer; None where the router does not count them.
        first_token_s: time from the request's headers to the first of a streamed answer's body;
            None where the body does not pass through the router, unless Envoy's log has told.
        headers_s: time from the request's to the response's headers.
        total_s: time from the request's headers to the end of the stream.
        unreached: the pod that was chosen for the last leg, where Envoy could not connect to it or
            does not know it, and has taken the second that it was told; None elsewhere.
        served_by: address of the pod that has answered, where Envoy tells it and it is not the one
            that was chosen.
        local_reply: why Envoy has answered, in its own words, where it tells.
        status: HTTP status of the answer.
        code: `error.code` of an error that the router gave.
        message: `error.message` of that error.
        outcome: how it ended.
        began: when it came, on the clock of performance counters.
        trace: its trace; None where it is not traced.
    """

    request_id: str
    client_request_id: str = ""
    method: str = ""
    path: str = ""
    user: str = ""
    standings: tuple[Standing, ...] = ()
    refused_by: Demand | None = None
    reserved: Taken | None = None
    reserved_prompt: int = 0
    model: str = ""
    stream: bool = False
    body_bytes: int = 0
    profile: str = ""
    strategy: str | None = None
    asked_strategy: str = ""
    decision: Decision | None = None
    forwarded: bool = False
    unseen: bool = False
    aggregated: str = ""
    handoff: str = ""
    prefill_pod: Pod | None = None
    kv_source: Pod | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    prefixes_gone: int = 0
    prefixes_found: int = 0
    predicted_prefill_s: float | None = None
    deadline: Deadline | None = None
    priority: int | None = None
    ranked_legs: tuple[Leg, ...] = ()
    attempts: list[Attempt] = []
    encode_attempts: int = 0
    retries: tuple[Retry, ...] = ()
    steps: StepTimes = msgspec.field(default_factory=StepTimes)
    overhead_s: float = 0.0
    output_tokens: int | None = None
    first_token_s: float | None = None
    headers_s: float | None = None
    total_s: float = 0.0
    unreached: Pod | None = None
    served_by: str = ""
    local_reply: str = ""
    status: int | None = None
    code: str = ""
    message: str = ""
    outcome: Outcome | None = None
    began: float = msgspec.field(default_factory=time.perf_counter)
    trace: RequestTrace | None = None

    def note_answer(self, usage: Usage | None, first_token_s: float | None) -> None:
        """Note what was counted of the answer."""
        if first_token_s is not None:
            self.first_token_s = first_token_s
        if usage is not None:
            self.prompt_tokens = usage.prompt_tokens
            self.cached_tokens = usage.cached_tokens
            self.output_tokens = usage.output_tokens

    @property
    def elapsed_s(self) -> float:
        """Time since it came."""
        return time.perf_counter() - self.began

    @property
    def log_fields(self) -> dict[str, dict[str, str]]:
        """What lines of the log say of whose they are."""
        return {"fields": {"request_id": self.request_id}}

    @property
    def standing_decision(self) -> Decision | None:
        """The decision, unless the request has ended before that was carried out."""
        return self.decision if self.forwarded or self.outcome in _STANDING else None

    @property
    def routing_s(self) -> float | None:
        """Time to choose the pods; None if they were not chosen."""
        return self.steps.seconds.get("route")

    @property
    def queued_s(self) -> float:
        """Time waiting for its turn."""
        return self.steps.seconds.get("queue", 0.0)

    @property
    def prefill_attempts(self) -> int:
        """How many tries there were of the leg that computes the prompt."""
        return len(self.attempts) - self.encode_attempts

    @property
    def encode_s(self) -> float | None:
        """Time waiting for media to be encoded; None where there was nothing to be encoded."""
        return self.steps.seconds.get(_ENCODE)

    @property
    def prefill_s(self) -> float:
        """Time waiting for the prefill leg."""
        return self.steps.seconds.get("prefill", 0.0)


def describe_decision(record: RequestRecord) -> str:
    """Return the decision as the header `x-pd-decision` gives it; nothing before there is one."""
    if record.decision is None:
        return ""
    if record.aggregated:
        return f"{DecisionKind.AGGREGATED};reason={record.aggregated}"
    return _DISAGGREGATED


class Observer(Protocol):
    """Is told what happens, as it happens. Must not raise."""

    def request_started(self, record: RequestRecord) -> None:
        """A stream was opened."""

    def request_routed(self, record: RequestRecord) -> None:
        """The pods were chosen."""

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        """One try of a side leg has ended."""

    def leg_retried(self, record: RequestRecord) -> None:
        """The last of the record's retries was decided upon."""

    def request_finished(self, record: RequestRecord) -> None:
        """The stream has ended, and all that was counted for it is released."""
