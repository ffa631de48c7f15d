"""Users of a router that is all its own but for engines and time: when each is served."""

import asyncio
import json
from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple

from exchanges import DECODE, PARAMS, SETTINGS, Notes, request_body, request_headers

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.extproc.messages import ImmediateReply
from pdrouter.journal.journal import Journal
from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import Settings
from pdrouter.settings.choices import Fairness, UserSource
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router
from pdrouter.wiring.knowledge import create_knowledge
from pdrouter.wiring.sharing import LANGUAGE, Sharing

TOKENS_PER_S = 8000
"""Speed of a prefill engine: one prompt after another, as they come."""


class Served(NamedTuple):
    """What came of one request.

    Attributes:
        user: whose it was.
        tokens: length of its prompt.
        came: when it came, in virtual seconds.
        answered: when its prefill leg was answered, or it was refused.
        refused: whether it was.
    """

    user: str
    tokens: int
    came: float
    answered: float
    refused: bool

    @property
    def wait_s(self) -> float:
        """From coming to the answer of the prefill leg: what a first token waits for."""
        return self.answered - self.came


class SerialEngines:
    """Prefill engines in virtual time, each of which computes a prompt at a time.

    Attributes:
        busy_s: seconds that each was computing, by address.
    """

    def __init__(self) -> None:
        self.busy_s: dict[str, float] = {}
        self._free: dict[str, asyncio.Lock] = {}

    async def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: Pieces,
        total_s: float,
        **more: Any,
    ) -> EngineAnswer:
        """Compute a prompt, once those before it are done."""
        del path, headers, total_s, more
        seconds = len(json.loads(bytes(body))["prompt"]) / TOKENS_PER_S
        async with self._free.setdefault(address, asyncio.Lock()):
            self.busy_s[address] = self.busy_s.get(address, 0.0) + seconds
            await asyncio.sleep(seconds)
        return EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")


class FairCluster:
    """A router before some prefill engines, and what came of the requests to it.

    Attributes:
        engines: the engines.
        served: what came of each request, in the order of the answers.
    """

    def __init__(self, pods: int = 1, **settings: Any) -> None:
        """Set up one worker. Call it in virtual time.

        Args:
            pods: how many prefill engines there are.
            settings: what differs from turns by tokens.
        """
        self.engines = SerialEngines()
        prefill = [
            Pod.create(
                uid=f"p{number}",
                name=f"prefill-{number}",
                ip=f"10.0.1.{number + 1}",
                port=8000,
                model="m",
                role=Role.PREFILL,
            )
            for number in range(pods)
        ]
        self._loop = asyncio.get_running_loop()
        self._settings = Settings(
            **{
                **SETTINGS,
                "fairness": Fairness.TOKENS,
                "users": UserSource.HEADER,
                **settings,
            }
        )
        self._cache = PodCache()
        self._cache.replace([*prefill, DECODE])
        self._numbers = count()
        self.workers: list[Exchanges] = []
        self.served: list[Served] = []

    async def start(self) -> "FairCluster":
        """Start as many workers as are set; each has its own loop's share of this one."""
        number = self._settings.workers
        if number == 1:
            self._start_worker(Sharing(clock=self._loop.time))
            return self
        layout = Layout(number, 256 * 1024)
        descriptor = create_memory(layout)
        for worker in range(number):
            memory = SharedMemory(descriptor, layout)
            journal = Journal(memory, worker, LANGUAGE, clock=self._loop.time)
            self._start_worker(Sharing(journal))
            await journal.join()
        return self

    def _start_worker(self, sharing: Sharing) -> None:
        knowledge = create_knowledge(self._settings, sharing, RouterGroup())
        around = Surroundings(
            cache=self._cache,
            router=create_router(self._settings, knowledge.state),
            client=self.engines,  # type: ignore[arg-type]
            observer=Notes(),
            tokenizers=PromptTokenizers({}, 1.0, 1),
            bodies=HeldBodies(1_000_000, 100_000_000),
            sharing=sharing,
        )
        self.workers.append(Exchanges(self._settings, around))

    async def ask(
        self,
        user: str,
        tokens: int,
        headers: Mapping[str, str] | None = None,
        *,
        worker: int = 0,
    ) -> None:
        """Send a request to a worker, and wait for its prefill leg."""
        exchange = self.workers[worker].open(_send_nothing, _do_nothing)
        came = self._loop.time()
        # No two prompts have anything in common that could be cached.
        prompt = [next(self._numbers), *[7] * (tokens - 1)]
        try:
            await exchange.handle(request_headers("/v1/completions", user=user, extra=headers))
            body = {"model": "m", "prompt": prompt, "max_tokens": 1}
            reply = await exchange.handle(request_body(body))
        finally:
            exchange.close()
        refused = isinstance(reply, ImmediateReply)
        self.served.append(Served(user, tokens, came, self._loop.time(), refused))

    def waits_of(self, user: str) -> list[float]:
        """The waits of a user's requests that were served, from the shortest to the longest."""
        return sorted(each.wait_s for each in self.served if each.user == user and not each.refused)

    def close(self) -> None:
        """Check that nothing is left."""
        for worker in self.workers:
            state = worker.dispatcher.chooser.router.state
            state.catch_up()
            assert state.ledger.snapshot() == {}


async def _send_nothing(data: bytes) -> None:
    del data


def _do_nothing() -> None:
    pass
