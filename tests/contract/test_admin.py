"""The HTTP port for operators, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from factories import make_decision, make_pod, make_record
from rosters import keys_of
from waiting import WAIT_S, wait_until

from pdrouter import __version__
from pdrouter.admin.http_port import HttpPort
from pdrouter.admin.server import AdminServer
from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.serving.record import RequestRecord
from pdrouter.settings import Settings
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.user import Limits, User

P = make_pod("p0", Role.PREFILL, kv_connector="shfs")
D = make_pod("d0", Role.DECODE, ready=False)


@dataclass
class Page:
    status: int
    type: str
    headers: dict[str, str]
    text: str


@dataclass
class Port:
    """A running admin port, and what it shows."""

    session: aiohttp.ClientSession
    cache: PodCache = field(default_factory=PodCache)
    ledger: Ledger = field(default_factory=Ledger)
    draining: bool = False
    silent: list[str] = field(default_factory=list)
    keys: KeysFile = field(default_factory=KeysFile)

    def __post_init__(self) -> None:
        self.telemetry = RequestTelemetry(self.cache, self.ledger)
        settings = Settings.load({"AIBRIX_AUTH_BEARER_TOKEN": "hunter2"}, {})
        self.server = AdminServer(
            self.cache,
            self.ledger,
            self.telemetry,
            settings.show(),
            lambda: self.draining,
            describe_silence=lambda: self.silent,
            keys=self.keys,
        )

    async def get(self, path: str, method: str = "GET") -> Page:
        url = f"http://{self.server.address}{path}"
        async with self.session.request(method, url) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Page(response.status, response.content_type, headers, await response.text())


@pytest_asyncio.fixture
async def port() -> AsyncIterator[Port]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        port = Port(session)
        await port.server.start("127.0.0.1", 0)
        yield port
        await port.server.stop()


async def test_the_process_is_healthy_from_the_start(port: Port) -> None:
    assert (await port.get("/healthz")).status == 200
    port.draining = True
    assert (await port.get("/healthz")).status == 200


async def test_the_process_is_ready_once_the_pods_are_known_and_until_it_drains(port: Port) -> None:
    page = await port.get("/readyz")
    assert (page.status, page.text) == (503, "the pods are not known yet\n")
    port.cache.replace([])
    assert (await port.get("/readyz")).status == 200
    port.draining = True
    page = await port.get("/readyz")
    assert (page.status, page.text) == (503, "draining\n")


async def test_models_without_an_engine_that_answers_are_said_but_no_reason_not_to_be_ready(
    port: Port,
) -> None:
    port.cache.replace([P])
    port.silent = ["model a: no engine answers", "model org/b: no prefill engine answers"]
    page = await port.get("/readyz")
    assert page.status == 200
    assert page.text == "ok\nmodel a: no engine answers\nmodel org/b: no prefill engine answers\n"


async def test_models_that_cannot_be_served_are_said_on_every_page(port: Port) -> None:
    odd = make_pod("odd", Role.BOTH, model="odd", unsupported="engine 'tgi' is not supported")
    port.cache.replace([P, odd])
    page = await port.get("/readyz")
    assert (page.status, page.text) == (200, "ok\nmodel odd: engine 'tgi' is not supported\n")
    state = json.loads((await port.get("/debug/state")).text)
    assert state["left_out"] == {"odd": "engine 'tgi' is not supported"}
    models = json.loads((await port.get("/v1/models")).text)
    assert [model["id"] for model in models["data"]] == ["llama"]
    line = 'pdrouter_pods{model="odd",role="both",state="unsupported"} 1.0'
    assert line in (await port.get("/metrics")).text


async def test_pods_without_a_partner_of_their_version_are_said(port: Port) -> None:
    waiting = make_pod("new", revision="two")
    port.cache.replace(
        [make_pod("p", revision="one"), make_pod("d", Role.DECODE, revision="one"), waiting]
    )
    state = json.loads((await port.get("/debug/state")).text)
    assert state["unmatched"] == ["new"]
    assert [pod["revision"] for pod in state["pods"]] == ["one", "one", "two"]
    line = 'pdrouter_pods_unmatched{model="llama",revision="two",role="prefill"} 1.0'
    assert line in (await port.get("/metrics")).text
    port.cache.replace([make_pod("p", revision="one"), make_pod("d", Role.DECODE, revision="one")])
    assert "pdrouter_pods_unmatched{" not in (await port.get("/metrics")).text


async def test_metrics_are_in_the_format_of_prometheus(port: Port) -> None:
    port.cache.replace([P])
    page = await port.get("/metrics")
    assert page.status == 200
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE pdrouter_requests_in_flight gauge" in page.text
    assert 'pdrouter_pod_ready{model="llama",namespace="default",pod="p0",role="prefill"} 1.0' in (
        page.text
    )


async def test_models_are_listed_as_openai_does(port: Port) -> None:
    port.cache.replace([make_pod(model="b"), make_pod(model="a", ready=False)])
    page = await port.get("/v1/models")
    assert (page.status, page.type) == (200, "application/json")
    assert [card["id"] for card in json.loads(page.text)["data"]] == ["a", "b"]


async def test_the_state_shows_pods_loads_requests_and_settings(port: Port) -> None:
    port.cache.replace([P, D])
    port.ledger.start(Leg.PREFILL, P.uid, 12)
    port.ledger.start(Leg.DECODE, "uid-gone")
    port.telemetry.request_started(make_record(model="llama", decision=make_decision(P, D)))
    page = await port.get("/debug/state")
    assert (page.status, page.type) == (200, "application/json")
    state = json.loads(page.text)
    assert state["version"] == __version__
    assert (state["synced"], state["draining"]) == (True, False)
    prefill, decode = state["pods"]
    assert prefill == prefill | {
        "uid": P.uid,
        "name": "p0",
        "namespace": "default",
        "address": "10.0.0.1:8000",
        "model": "llama",
        "role": "prefill",
        "roleset": "",
        "engine": "vllm",
        "kv_connector": "shfs",
        "ready": True,
        "prefill_requests": 1,
        "prefill_tokens": 12,
        "decode_requests": 0,
    }
    assert (decode["ready"], decode["prefill_requests"]) == (False, 0)
    assert set(state["ledger"]) == {P.uid, "uid-gone"}
    (request,) = state["requests"]
    assert (request["request_id"], request["decode_pod"]) == ("r-1", "d0")
    assert set(state["settings"]) == set(Settings().show())


async def test_no_page_shows_a_secret(port: Port) -> None:
    page = await port.get("/debug/state")
    assert "hunter2" not in page.text
    assert json.loads(page.text)["settings"]["AIBRIX_AUTH_BEARER_TOKEN"] == "(secret)"


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/models/", "/debug", "/metrics/x"])
async def test_a_page_that_is_none_is_an_error_as_openai_gives_it(port: Port, path: str) -> None:
    page = await port.get(path)
    assert (page.status, page.type) == (404, "application/json")
    assert json.loads(page.text)["error"]["code"] == "unknown_path"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed_through_the_port(port: Port, method: str) -> None:
    page = await port.get("/v1/models", method)
    assert (page.status, page.type) == (405, "application/json")
    assert json.loads(page.text)["error"]["code"] == "method_not_allowed"
    assert page.headers["allow"] == "GET,HEAD"


async def test_a_head_request_gets_no_body(port: Port) -> None:
    page = await port.get("/healthz", "HEAD")
    assert (page.status, page.text) == (200, "")


async def test_an_address_in_use_is_an_error(port: Port) -> None:
    host, _, number = port.server.address.rpartition(":")
    other = Port(port.session)
    with pytest.raises(OSError, match="address already in use"):
        await other.server.start(host, int(number))
    await other.server.stop()


async def test_an_ipv6_address_is_shown_in_brackets(port: Port) -> None:
    other = Port(port.session)
    try:
        await other.server.start("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    try:
        assert other.server.address.startswith("[::1]:")
        assert (await other.get("/healthz")).status == 200
    finally:
        await other.server.stop()


async def test_a_port_that_was_stopped_is_free_again(port: Port) -> None:
    address = port.server.address
    await port.server.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await port.get("/healthz")
    host, _, number = address.rpartition(":")
    other = Port(port.session)
    await other.server.start(host, int(number))
    assert (await other.get("/healthz")).status == 200
    await other.server.stop()


async def test_users_are_shown_with_their_limits_and_what_they_have_open(port: Port) -> None:
    ann = User("ann", models=("m",), limits=Limits(5), model_limits={"m": Limits(1)})
    port.keys.roster = keys_of(ann, User("bob"), default_limits=Limits(9)).roster
    for user in ("ann", "ann", "eve", ""):
        port.telemetry.request_started(
            RequestRecord(f"{user}{len(port.telemetry.open)}", user=user)
        )
    page = (await port.get("/debug/state")).text
    users = json.loads(page)["users"]
    assert [(each["name"], each["keys"], each["open_requests"]) for each in users["named"]] == [
        ("ann", 1, 2),
        ("bob", 1, 0),
    ]
    assert users["named"][0]["models"] == ["m"]
    assert users["named"][0]["limits"]["requests_per_minute"] == 5
    assert users["others"] == {"open_requests": 1}
    assert users["default_limits"]["requests_per_minute"] == 9
    assert "sha256" not in page


async def test_who_leaves_before_a_page_is_made_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def show(request: web.Request) -> web.Response:
        asked.set()
        await wait_until(lambda: request.transport is None or request.transport.is_closing())
        left.set()
        return web.Response(text="page")

    server = HttpPort({"/page": show})
    await server.start("127.0.0.1", 0)
    try:
        host, number = server.address.split(":")
        _, writer = await asyncio.open_connection(host, int(number))
        writer.write(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            await asked.wait()
            writer.transport.abort()
            await left.wait()
        await wait_until(lambda: server.pages == 0)
    finally:
        await server.stop()
    assert not [line for line in caplog.records if line.levelname == "ERROR"]
