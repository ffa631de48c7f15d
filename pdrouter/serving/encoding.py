"""Has a request's media encoded: all items at once, each by the pod that its content belongs to."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import HandoffInvalid, Leg
from pdrouter.engines.vllm.encoding import (
    Encoded,
    join,
    list_items,
    may_have_items,
    read_answer,
    write_body,
)
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.media import MANY_PARTS, MULTIMODAL, find_media
from pdrouter.openai.media_items import MediaItem
from pdrouter.openai.media_names import rename_media
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.routing.decision import Choice
from pdrouter.routing.encoding import choose_encoders
from pdrouter.serving.call import Call
from pdrouter.serving.leg_outcome import (
    Attempt,
    LegAnswer,
    LegFailed,
    LegRefused,
    choose_refusal,
)
from pdrouter.serving.leg_posts import LegPosts
from pdrouter.serving.leg_requests import LegRequests
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.refusals import refuse_encoded
from pdrouter.serving.statuses import Speaks
from pdrouter.serving.steps import Step
from pdrouter.settings.choices import RemoteHostRewrite

_LARGE_BODY_BYTES = 64 * 1024
"""From this size on, media are found and digested beside the event loop."""
_HAVE_MEDIA = frozenset({MULTIMODAL, MANY_PARTS})


@dataclass(frozen=True, slots=True)
class EncodeRules:
    """What an operator decides about encoding.

    Attributes:
        most_items: how many items a request may have.
        at_once: how many of them are encoded at once.
        most_bytes: of what engines say of all items of a request.
        rewrite: when a pod's own address takes the place of the one that its answer names.
        each_leg_may: whether requests are split whose media each leg has to encode itself.
    """

    most_items: int
    at_once: int
    most_bytes: int
    rewrite: RemoteHostRewrite = RemoteHostRewrite.AUTO
    each_leg_may: bool = False


@dataclass(frozen=True, slots=True)
class EncodeLegs:
    """Runs encode legs. One for the whole process.

    Attributes:
        others: runs the other side legs, by the same means.
        rules: what the operator decided.
    """

    others: SideLegs
    rules: EncodeRules

    async def take_media(
        self, request: InferenceRequest, pods: ModelPods, record: RequestRecord
    ) -> tuple[InferenceRequest, tuple[MediaItem, ...]]:
        """Return a request whose media have no name that a client may not give, and these media.

        There are none if pods that encode can do nothing for it. As long as there are such pods,
        ready or not, engines near them keep media by the router's names. Ask `concerns` first.

        Raises:
            RequestRejected: there are too many, or their names cannot be read.
        """
        look = partial(self._look, request, encodes=bool(pods.takers))
        with Step(record.steps, "media", waits=True):
            if len(request.body.data) < _LARGE_BODY_BYTES:
                edits, items = look()
            else:
                edits, items = await asyncio.to_thread(look)
        if len(items) > self.rules.most_items:
            message = f"the prompt has {len(items)} images, sounds and videos, and may have "
            message += f"{self.rules.most_items}"
            raise RequestRejected(400, "too_many_media", message, request.prompt_name)
        return (request.with_edits(edits) if edits else request), items

    def concerns(self, request: InferenceRequest, pods: ModelPods) -> bool:
        """Return whether a request may have media that others, if there are any, could encode."""
        looked = request.endpoint.legs == 2 and not self.rules.each_leg_may
        if looked and _HAVE_MEDIA.isdisjoint(request.misfits):
            return False
        return self.others.cache.view.may_share_encodings(pods)

    def _look(
        self, request: InferenceRequest, *, encodes: bool
    ) -> tuple[Mapping[str, Pieces], tuple[MediaItem, ...]]:
        edits = rename_media(request.body)
        if not (encodes and may_have_items(request)):
            return edits, ()
        found = find_media(request.body, request.prompt_name) == MULTIMODAL
        return edits, list_items(request) if found else ()

    async def run(
        self,
        requests: LegRequests,
        items: Sequence[MediaItem],
        chosen: OpenDecision,
        headers: Mapping[str, str],
        call: Call,
    ) -> "EncodedRequests":
        """Have the media of a request encoded, and return what the other legs get.

        Cancelling closes the connections: the engines stop their work.

        Args:
            requests: the request.
            items: its media.
            chosen: its pods.
            headers: headers for the engines.
            call: gets what happens.

        Raises:
            LegRefused: an engine refused an item.
            LegFailed: all attempts for an item failed.
            RequestRejected: the engines' answers cannot be used.
        """
        encoded = EncodedRequests(self, requests, items, chosen, headers, record=call.record)
        await encoded.encode()
        return encoded


class EncodedRequests(LegRequests):
    """A request whose media are encoded. What the engines hold of it is fetched once."""

    __slots__ = ("_chosen", "_failed", "_headers", "_items", "_legs", "_record", "_rules")

    def __init__(
        self,
        legs: EncodeLegs,
        requests: LegRequests,
        items: Sequence[MediaItem],
        chosen: OpenDecision,
        headers: Mapping[str, str],
        *,
        record: RequestRecord,
    ) -> None:
        super().__init__(requests.client, requests.deadline)
        self._legs = legs.others
        self._rules = legs.rules
        self._items = items
        self._chosen = chosen
        self._headers = headers
        self._record = record
        self._failed = False

    async def renew(self, attempt: Attempt, taker: Pod) -> None:
        """Have everything encoded again, unless nobody can have fetched it yet."""
        unread = attempt.failure is FailureKind.CONNECT or attempt.speaks is Speaks.POD
        if unread and attempt.pod.encoding == taker.encoding:
            return
        chosen, router = self._chosen, self._legs.router
        routed = chosen.routed
        # The view of now: encoders may be gone, and others have come.
        pods = self._legs.cache.view.models.get(self.client.model, routed.pods)
        decision = router.choose_encoders(routed.decision, routed.facts, pods)
        chosen.change(structs.replace(routed, decision=decision))
        await self.encode()

    async def encode(self) -> None:
        """Have all items encoded by the pods that are chosen now, equal ones once."""
        unique = {item.digest: item for item in self._items}
        choices = self._chosen.decision.encode
        if not choices:  # The pair is another one, for which nobody encodes.
            self.prompt = self.last = self.client
            return
        slots = asyncio.Semaphore(self._rules.at_once)
        encoded: dict[str, Encoded] = {}
        pairs = zip(unique.values(), choices, strict=True)
        try:
            with Step(self._record.steps, Leg.ENCODE, waits=True):
                await _run_all(
                    self._run(index, item, choice, slots, encoded)
                    for index, (item, choice) in enumerate(pairs)
                )
            self.prompt, self.last = join(self.client, self._items, encoded)
        except HandoffInvalid as invalid:
            raise self._refuse(invalid) from invalid

    async def _run(
        self,
        index: int,
        item: MediaItem,
        choice: Choice,
        slots: asyncio.Semaphore,
        encoded: dict[str, Encoded],
    ) -> None:
        """Have one item encoded; if that fails, so do the others."""
        try:
            await self._encode(index, item, choice, slots, encoded)
        except Exception:
            self._failed = True
            raise

    async def _encode(
        self,
        index: int,
        item: MediaItem,
        choice: Choice,
        slots: asyncio.Semaphore,
        encoded: dict[str, Encoded],
    ) -> None:
        """Have one item encoded, by one pod after another."""
        async with slots:
            pod, answer = await self._post(index, item, choice)
        try:
            encoded[item.digest] = read_answer(item, answer.body, pod, self._rules.rewrite)
        except HandoffInvalid as invalid:
            self._note_unusable(pod, answer, invalid.reason)
            raise self._refuse(invalid) from invalid
        if sum(map(len, encoded.values())) > self._rules.most_bytes:
            raise self._refuse(HandoffInvalid("ec-too-large", "the answers are too large"))

    async def _post(self, index: int, item: MediaItem, first: Choice) -> tuple[Pod, EngineAnswer]:
        legs, client, record = self._legs, self.client, self._record
        ids = _name_posts(record.request_id, index)
        posts = LegPosts(
            legs.client,
            Leg.ENCODE,
            client,
            self._headers,
            record,
            ids,
            self.deadline,
            total_s=legs.total_s,
            alone=False,
        )
        attempts: list[Attempt] = []
        refusals: list[EngineAnswer] = []
        choice: Choice | None = first
        over_budget = False
        while choice is not None:
            attempt, answer = await self._try(item, choice.pod, posts)
            attempts.append(attempt)
            if answer is not None and attempt.speaks is Speaks.DONE:
                for refuted in attempts[:-1]:
                    legs.lessons.outcomes.note_refuted(refuted, client.model)
                return choice.pod, answer
            if answer is not None and attempt.speaks is not Speaks.FAILURE:
                refusals.append(answer)
            if attempt.speaks is Speaks.REQUEST:
                raise LegRefused(Leg.ENCODE, refusals[-1])
            choice = self._choose_other(item, attempts)
            if choice and attempt.burdens and not legs.budget.take_retry(client.model):
                choice, over_budget = None, True
        told = choose_refusal(refusals, failures=len(attempts) - len(refusals))
        if told is not None:
            raise LegRefused(Leg.ENCODE, told)
        raise LegFailed(tuple(attempts), over_budget=over_budget)

    async def _try(
        self, item: MediaItem, pod: Pod, posts: LegPosts
    ) -> tuple[Attempt, EngineAnswer | None]:
        """Try one pod, count the item there meanwhile, and learn from it."""
        legs, client = self._legs, self.client
        state = legs.router.state
        began = state.failures.clock()

        def write(_: str) -> tuple[Mapping[str, str], Pieces]:
            return {}, write_body(client, item)

        try:
            with state.hold(Leg.ENCODE, pod.uid):
                attempt, answer = await posts.send(pod, write)
        except asyncio.CancelledError:
            # Who is given up for another's failure has not been waited for in vain.
            if not self._failed:
                legs.lessons.outcomes.note_silence(pod, Leg.ENCODE, began)
            raise
        legs.lessons.note_attempt(attempt, client, self._chosen.routed.pods.model, self._record)
        return attempt, answer

    def _choose_other(self, item: MediaItem, attempts: Sequence[Attempt]) -> Choice | None:
        """Return the pod to try next; None if there is none, or enough have been tried."""
        legs, chosen = self._legs, self._chosen
        if len(attempts) > legs.retries or time.monotonic() >= self.deadline:
            return None
        # The view of now: the pod that failed may be gone from it, and others have come.
        pods = legs.cache.view.models.get(self.client.model)
        if pods is None:
            return None
        tried = {uid for attempt in attempts for uid in attempt.pod.same_address}
        found = choose_encoders(
            (item.digest,), chosen.decision.taker, pods, legs.router.state, avoided=tried
        )
        return found[0] if found else None

    def _note_unusable(self, pod: Pod, answer: EngineAnswer, reason: str) -> None:
        done = LegAnswer(Leg.ENCODE, pod, self._record.request_id, answer.body, None)
        self._legs.lessons.outcomes.note_unusable(done, self._chosen.routed.pods.model, reason)

    def _refuse(self, invalid: HandoffInvalid) -> RequestRejected:
        self._record.handoff = invalid.reason
        return refuse_encoded(invalid)


async def _run_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run works at once; the first that fails ends the others, and raises what it raises."""
    first: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        failed.__traceback__ = None  # The group's last frame knows it, and would know itself by it.
    if first is not None:
        try:
            raise first
        finally:
            del first  # Likewise.


def _name_posts(request_id: str, index: int) -> Iterator[str]:
    """Yield ids, each of which no engine has seen: what it holds is known by it."""
    for _ in count():
        yield f"{request_id}:{index}:{token_hex(4)}"
