"""What becomes of one leg without the other, where they meet by the id of a transfer."""

from dataclasses import replace
from random import Random

import httpx
import pytest
from expectations import DECODE, PREFILL, UNTIL_SETTLED_S, chat
from failures import CHAT, failing, try_first
from together import FAULTS, Case, leave, suffer, suffer_many

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import KvConnector
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIRES: tuple[KvConnector, ...] = ("nixl-push", "mooncake", "offloading")
CASES = [
    case
    for case in FAULTS
    if case.leg == "decode"
    # Prefill answers are no streams here, and nothing else has a middle.
    or not (case.fault.hang_after_head or case.fault.drop_after_tokens is not None)
]


@pytest.fixture(scope="module", params=WIRES)
def stack_options(request: pytest.FixtureRequest) -> StackOptions:
    wire: KvConnector = request.param
    return StackOptions(
        prefill=[
            replace(config, kv_connector=wire, kv_lease_s=UNTIL_SETTLED_S) for config in PREFILL
        ],
        decode=[replace(config, kv_connector=wire) for config in DECODE],
        environment={
            "AIBRIX_KV_CONNECTOR_TYPE": wire,
            "AIBRIX_PREFILL_REQUEST_TIMEOUT": "2",
            # Pods that are made to fail here must be there for the next test.
            "PDROUTER_EJECT_AFTER": "0",
        },
    )


async def know_all(stack: LocalStack, client: httpx.AsyncClient) -> None:
    """Let the router get to know all prefill engines, so that legs run at once."""
    if stack.prefill[0].config.kv_connector == "offloading":
        return  # Nothing need be known of them.
    pods = {pod.address: pod for pod in stack.router.cache.view.pods}
    for engine in stack.prefill:
        while stack.router.knowledge.peers.find(pods[engine.address]) is None:
            with try_first(stack, engine):
                assert (await client.post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.hangs], ids=str)
async def test_a_fault_of_a_leg_ends_the_other(
    stack: LocalStack, client: httpx.AsyncClient, case: Case, *, stream: bool
) -> None:
    await know_all(stack, client)
    await suffer(stack, client, case, chat(max_tokens=20, stream=stream))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_prefill_that_hangs_ends_with_its_deadline(
    stack: LocalStack, client: httpx.AsyncClient, *, stream: bool
) -> None:
    (case,) = [case for case in CASES if case.hangs and case.leg == "prefill"]
    await know_all(stack, client)
    await suffer(stack, client, case, chat(max_tokens=20, stream=stream))


@pytest.mark.parametrize("leg", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_leaves_ends_all(
    stack: LocalStack, client: httpx.AsyncClient, leg: str, *, stream: bool
) -> None:
    await know_all(stack, client)
    await leave(stack, client, leg, chat(stream=stream))


@pytest.mark.parametrize(("status", "doubted"), [(500, True), (400, False)])
async def test_what_decode_was_told_of_is_doubted_if_decode_fails(
    stack: LocalStack, client: httpx.AsyncClient, status: int, *, doubted: bool
) -> None:
    await know_all(stack, client)
    with failing(stack.decode, Fault(status=status)):
        assert (await client.post(CHAT, json=chat())).status_code == status
    pods = {pod.address: pod for pod in stack.router.cache.view.pods}
    known = [stack.router.knowledge.peers.find(pods[engine.address]) for engine in stack.prefill]
    # Of engines with a P2P tier nothing is known in any case.
    unknown = len(known) if stack.prefill[0].config.kv_connector == "offloading" else doubted
    assert known.count(None) == unknown


async def test_many_requests_with_faults_leave_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    random = Random(13)
    bodies = [chat(stream=random.random() < 0.5, seed=number) for number in range(200)]
    await suffer_many(stack, client, bodies, random)
    await know_all(stack, client)
