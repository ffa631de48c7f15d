"""Two replicas of the router for a simulation that read the same bodies.

One calls the strategy, as simulations do. The other is the router as it serves Envoy: each request
is an exchange of messages, from the request's headers to the end of its response.
"""

import json
from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import cache
from random import Random
from typing import Any

from exchanges import PARAMS, Notes, request_body, request_headers, response_headers
from factories import make_request

from benchmarks.routing.cluster.router_replica import RoutedLegs, RouterOptions, RouterReplica
from benchmarks.routing.cluster.workload import BLOCK_TOKENS
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.progress import PostProgress
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.messages import PhaseReply, Reply
from pdrouter.openai.prompt_prefix import hash_prompt
from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.routing.decision import Decision, RoutingFacts, Strategy
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import Settings
from pdrouter.settings.choices import FailurePolicy, Priority
from pdrouter.wiring.exchanges import Exchanges, Surroundings
from pdrouter.wiring.sharing import Sharing

PATH = "/v1/completions"
EXPECTED_TOKENS = 2**30
"""Length of an answer that operators expect: the requests' own limits are lower, and hold."""


@cache
def write_body(model: str, blocks: tuple[int, ...], tokens: int, output_tokens: int) -> bytes:
    """Return a request whose prompt has so many tokens and begins with these blocks."""
    prompt = [10_000 + block for block in blocks for _ in range(BLOCK_TOKENS)]
    own = 1_000_000 + hash((blocks, tokens)) % 1_000_000
    prompt += [own] * (tokens - len(prompt))
    return json.dumps({"model": model, "prompt": prompt, "max_tokens": output_tokens}).encode()


class DirectReplica(RouterReplica):
    """Tells the strategy what the body says."""

    def route(self, facts: RoutingFacts) -> RoutedLegs | None:
        body = write_body(
            self._pods.model, facts.prefix.hashes, facts.prompt_tokens, facts.output_tokens
        )
        request = make_request(PATH, body)
        tokens = request.listed_tokens
        assert tokens == facts.prompt_tokens
        return super().route(
            RoutingFacts(
                tokens,
                None,
                hash_prompt(request),
                facts.output_tokens,
                usual_output_tokens=EXPECTED_TOKENS,
            )
        )


class LiveReplica(RouterReplica):
    """Serves each request by an exchange, over a prefill client that answers when it is told to."""

    def __init__(
        self,
        strategy: Strategy,
        pods: ModelPods,
        options: RouterOptions,
        clock: Callable[[], float],
        random: Random,
        *,
        sharing: Sharing | None = None,
    ) -> None:
        sharing = sharing or Sharing(clock=clock)
        super().__init__(strategy, pods, options, clock, random, sharing=sharing)
        cache = PodCache()
        cache.replace(pods.pods)
        self._observer = Observer()
        deadlines = options.deadlines or DeadlineRules()
        settings = Settings(
            routing_algorithm=strategy.name,
            aggregation=options.aggregation,
            handover_s=options.handover_s,
            priority=Priority.OFF if options.deadlines is None else Priority.ON,
            default_target_s=deadlines.default_s,
            default_target_factor=deadlines.factor,
            on_handoff_failure=FailurePolicy.FAIL,
            prefill_timeout_s=600.0,
            prefill_retries=0,
            expected_output_tokens=EXPECTED_TOKENS,
            max_message_bytes=2**30,
        )
        self._exchanges = Exchanges(
            settings,
            Surroundings(
                cache=cache,
                router=self.router,
                client=SteppedClient(),  # type: ignore[arg-type]
                observer=self._observer,
                tokenizers=PromptTokenizers({}, 1.0, 1),
                bodies=HeldBodies(2**30, 2**40),
                sharing=sharing,
            ),
        )

    def route(self, facts: RoutingFacts) -> RoutedLegs | None:
        body = write_body(
            self._pods.model, facts.prefix.hashes, facts.prompt_tokens, facts.output_tokens
        )
        exchange = self._exchanges.open(_not_carried, lambda: None)
        run_to_end(exchange.handle(request_headers(PATH)))
        dispatching = exchange.handle(request_body(body))
        reply: Reply | None = None
        try:
            dispatching.send(None)
        except StopIteration as end:
            reply = end.value
        record = self._observer.take_record()
        assert record.decision is not None
        # What has a prefill leg waits for its answer; what is served whole goes to Envoy at once.
        assert record.decision.whole == (reply is not None)
        # Engines are told the time of day, which does not go with the simulation's.
        assert (record.priority is None) == (record.deadline is None)
        due = 0.0 if record.deadline is None else record.deadline.due
        return LiveLegs(record.decision, due, facts, self, exchange, dispatching)


class Observer(Notes):
    """Remembers the request that was routed last."""

    def __init__(self) -> None:
        super().__init__()
        self._record: RequestRecord | None = None

    def request_routed(self, record: RequestRecord) -> None:
        self._record = record

    def take_record(self) -> RequestRecord:
        record, self._record = self._record, None
        assert record is not None
        return record


class LiveLegs(RoutedLegs):
    """The legs of one exchange, which counts them itself."""

    def __init__(
        self,
        decision: Decision,
        priority: float,
        facts: RoutingFacts,
        replica: RouterReplica,
        exchange: Exchange,
        dispatching: Coroutine[Any, Any, Reply | None],
    ) -> None:
        self.decision = decision
        self.priority = priority
        self.prompt_tokens = facts.prompt_tokens
        # First tokens are told as in any simulation: the exchange has another clock.
        self._replica = replica
        self.exchange = exchange
        self.dispatching = dispatching

    def finish_prefill(self, computed_tokens: int) -> None:
        cached = self.prompt_tokens - computed_tokens
        usage = (
            b'{"prompt_tokens": %d, "completion_tokens": 1, "total_tokens": %d,'
            b' "prompt_tokens_details": {"cached_tokens": %d}}'
            % (self.prompt_tokens, self.prompt_tokens + 1, cached)
        )
        answer = EngineAnswer(
            200, {}, b'{"kv_transfer_params": ' + PARAMS + b', "usage": ' + usage + b"}"
        )
        reply = run_to_end(self.dispatching, answer)
        assert isinstance(reply, PhaseReply)

    def finish(self) -> None:
        run_to_end(self.exchange.handle(response_headers()))
        self.exchange.close()


class SteppedClient:
    """Waits for the answer to be sent into the coroutine that it runs in."""

    async def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        total_s: float,
        *,
        progress: PostProgress | None = None,
        once: bool = False,
        fresh: bool = False,
    ) -> EngineAnswer:
        del address, path, headers, body, total_s, progress, once
        return await Answer()


class Answer:
    """What is sent into the coroutine that awaits this."""

    def __await__(self) -> Generator[None, EngineAnswer, EngineAnswer]:
        return (yield)


async def _not_carried(data: bytes) -> None:
    raise AssertionError("replies are taken from the exchange itself")


def run_to_end(
    coroutine: Coroutine[Any, Any, Reply | None], sent: EngineAnswer | None = None
) -> Reply | None:
    """Run a coroutine that waits for nothing more."""
    try:
        coroutine.send(sent)
    except StopIteration as end:
        reply: Reply | None = end.value
        return reply
    raise AssertionError("the coroutine waits")
