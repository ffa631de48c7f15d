"""What users are charged for requests, until it is known what these have used."""

import asyncio
from collections.abc import Callable, Iterable

from pdrouter.bounded import make_room
from pdrouter.load.served_tokens import ServedTokens
from pdrouter.load.token_weights import DEFAULT_WEIGHTS, TokenWeights
from pdrouter.load.usage_news import UsageNews
from pdrouter.openai.usage import Usage
from pdrouter.routing.algorithms.vtc import NAME as VTC
from pdrouter.routing.decision import RoutingFacts
from pdrouter.serving.gate import has_reached_engine
from pdrouter.serving.record import Outcome, RequestRecord

MOST_UNSETTLED = 8192
"""Answers of which it may yet be told what they used: the oldest keeps what was expected of it."""

_LEAST_ERROR = 400


class Charge:
    """The weighted tokens that a user is charged for one request, as they are expected at first.

    Attributes:
        tokens: what was charged.
    """

    __slots__ = ("_correct", "_output", "_prompt", "_weights", "tokens")

    def __init__(
        self, facts: RoutingFacts, weights: TokenWeights, correct: Callable[[float], None]
    ) -> None:
        """Begin with what is expected; whoever makes it has counted that.

        Args:
            facts: the request.
            weights: what tokens count.
            correct: counts what was used beyond what was charged; less than nothing takes back.
        """
        self._prompt, self._output = facts.prompt_tokens, facts.output_tokens
        self._weights = weights
        self._correct: Callable[[float], None] | None = correct
        self.tokens = weights.weigh(self._prompt, self._output)

    def give_up(self) -> None:
        """Charge nothing: no engine has got anything. What was settled stays so."""
        self._settle(0, 0)

    def charge_prompt(self) -> None:
        """Charge the prompt alone: nothing was generated. What was settled stays so."""
        self._settle(self._prompt, 0)

    def charge_used(self, usage: Usage) -> None:
        """Charge what was used in place of what was expected. What was settled stays so."""
        self._settle(usage.prompt_tokens, usage.output_tokens or 0)

    def _settle(self, prompt: int, output: int) -> None:
        correct, self._correct = self._correct, None
        if correct is not None:
            correct(self._weights.weigh(prompt, output) - self.tokens)


class Charges:
    """Charges users, and puts right what they were charged. One for the whole process.

    Attributes:
        weights: what tokens count.
    """

    def __init__(
        self,
        served: ServedTokens,
        weights: TokenWeights = DEFAULT_WEIGHTS,
        most: int = MOST_UNSETTLED,
        *,
        news: UsageNews | None = None,
    ) -> None:
        """Begin with none.

        Args:
            served: what users were served of late, for choices that go by it.
            weights: what tokens count.
            most: requests of which it may yet be told what they used.
            news: passes on to other workers what is told here of requests of theirs.
        """
        self._news = UsageNews() if news is None else news
        self._news.on_news = self._hear
        self.weights = weights
        self._served = served
        self._most = most
        self._open: dict[str, tuple[Charge, ...]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def keep(self, request_id: str, charge: Charge) -> None:
        """Keep a charge until it is told what its request has used."""
        self._news.want()
        make_room(self._open, request_id, self._most)
        self._open[request_id] = (*self._open.get(request_id, ()), charge)

    def charge(self, request_id: str, facts: RoutingFacts) -> None:
        """Count a request that is routed now among what its user was served of late.

        Nobody asks for that but one strategy.
        """
        user, served = facts.user, self._served
        if not user or VTC not in facts.algorithms:
            return
        charge = Charge(facts, self.weights, lambda tokens: served.count(user, tokens))
        served.count(user, charge.tokens)
        self.keep(request_id, charge)

    def note_usage(self, request_id: str, usage: Usage) -> None:
        """Charge what an answer has used, in place of what was expected of it.

        Envoy's access log may tell it another worker than the one that has charged the request.
        """
        if request_id not in self._open and self._news.wanted:
            self._news.tell(request_id, usage.prompt_tokens, usage.output_tokens or 0)
        for charge in self._open.pop(request_id, ()):
            charge.charge_used(usage)

    def _hear(self, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        """Take from another worker what an answer has used."""
        if request_id in self._open:
            usage = Usage(prompt_tokens, None, output_tokens)
            # Later, for what is charged is a change of this worker, and no part of the other's.
            asyncio.get_running_loop().call_soon(self.note_usage, request_id, usage)

    def end(self, record: RequestRecord) -> None:
        """Charge a request that has ended no more than it can have used."""
        charges = self._open.get(record.request_id)
        if charges is None or _may_generate(record):
            return
        del self._open[record.request_id]
        _charge_least(charges, record)


def _may_generate(record: RequestRecord) -> bool:
    """Return whether a request has an answer of an engine, as far as is known when it ends."""
    answered = record.outcome is Outcome.OK
    return answered or (record.forwarded and (record.status or 0) < _LEAST_ERROR)


def _charge_least(charges: Iterable[Charge], record: RequestRecord) -> None:
    reached = has_reached_engine(record)
    for charge in charges:
        if reached:
            charge.charge_prompt()
        else:
            charge.give_up()
