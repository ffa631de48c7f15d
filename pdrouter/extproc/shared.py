"""What all exchanges of a process work with."""

from dataclasses import dataclass

from pdrouter.cluster.view import PodCache
from pdrouter.extproc.exchange_policy import ExchangePolicy
from pdrouter.serving.answers import AnswerReports
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.identities import Identities
from pdrouter.serving.record import Observer
from pdrouter.serving.trace import BeginTrace
from pdrouter.serving.way import Dispatcher


@dataclass(frozen=True, slots=True)
class Shared:
    """What exchanges share. One for the whole process.

    Attributes:
        dispatcher: finds the way of requests.
        cache: the pods.
        observer: is told what happens.
        answers: get what is seen of answers.
        policy: what the operator decided.
        identities: know who asks; None where that makes no difference.
        bodies: bounds the bodies that wait.
        begin_trace: begins traces of requests; None where there are none.
    """

    dispatcher: Dispatcher
    cache: PodCache
    observer: Observer
    answers: AnswerReports
    policy: ExchangePolicy
    identities: Identities | None
    bodies: HeldBodies
    begin_trace: BeginTrace | None = None
