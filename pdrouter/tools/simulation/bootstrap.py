"""SGLang's bootstrap server, where decode engines ask a prefill engine for their rooms."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.refusal import ContractViolated, Refused
from pdrouter.tools.simulation.rooms import RoomStore

JOIN_PATH = "/simulation/rooms/join"
"""Where a bootstrap server answers; it stands in for SGLang's own protocol."""

DEFAULT_PORT = 8998
"""Where a decode engine looks for the server if the port is null (SGLang's default)."""

_MOST_ROOM = 2**63 - 1
_FORGETFUL = ("/v1/messages", "/v1/responses")


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the legs of a request meet.

    Attributes:
        host: Host of the prefill engine's bootstrap server.
        port: Its port.
        rooms: A room for each choice of each prompt.
    """

    host: str
    port: int
    rooms: tuple[int, ...]


def read_meeting(members: Mapping[str, Any], items: int) -> Meeting:
    """Return where a request's legs meet.

    Args:
        members: The decoded body.
        items: How many choices of how many prompts it asks for.

    Raises:
        ContractViolated: A member is missing, or no such member.
    """
    hosts = _spread("bootstrap_host", members, items)
    ports = _spread("bootstrap_port", members, items)
    rooms = _spread("bootstrap_room", members, items)
    for name, wrong in (
        ("bootstrap_host", any(not isinstance(host, str) or not host for host in hosts)),
        ("bootstrap_port", any(port is not None and type(port) is not int for port in ports)),
        (
            "bootstrap_room",
            any(type(room) is not int or not 0 <= room <= _MOST_ROOM for room in rooms),
        ),
    ):
        if wrong:
            raise _violated("bootstrap_value", f"{name} has a value that cannot be used", name)
    if len(set(rooms)) != items:
        raise _violated("bootstrap_shared_room", "two items share a room", "bootstrap_room")
    if any(":" in host and not host.startswith("[") for host in hosts):
        # To older engines, which put the port behind it as it stands; newer ones take both forms.
        raise _violated("bootstrap_ipv6", "bootstrap_host lacks brackets", "bootstrap_host")
    if len({*hosts}) != 1 or len({*ports}) != 1:
        raise _violated("bootstrap_hosts", "one prompt is on several prefill engines")
    return Meeting(hosts[0], DEFAULT_PORT if ports[0] is None else ports[0], tuple(rooms))


def check_rank(members: Mapping[str, Any], meeting: Meeting, ranks: int) -> None:
    """Hold a prefill leg to its rank, which the rooms say, too (`follow_bootstrap_room`).

    Raises:
        ContractViolated: A real engine would fail the request.
    """
    rank = members.get("routed_dp_rank")
    if rank is None:
        return
    if type(rank) is not int or not 0 <= rank < ranks:
        raise _violated("bootstrap_rank", f"there is no rank {rank!r}", "routed_dp_rank")
    if any(room % ranks != rank for room in meeting.rooms):
        message = f"follow_bootstrap_room conflict: a room implies another rank than {rank}"
        raise _violated("bootstrap_rank", message, "bootstrap_room")


def _spread(name: str, members: Mapping[str, Any], items: int) -> list[Any]:
    """Return a member's value for each item: a list's own, or one for the only one."""
    if name not in members:
        message = f"Disaggregated request received without {name}"
        raise _violated("bootstrap_missing", message, name)
    value = members[name]
    values = value if isinstance(value, list) else [value]
    if len(values) != items:
        # SGLang would count up from a scalar room; routers that do the same for two requests meet.
        message = f"{name} has {len(values)} values for {items} items"
        raise _violated("bootstrap_length", message, name)
    return values


def _violated(reason: str, message: str, param: str | None = None) -> ContractViolated:
    return ContractViolated(reason, 400, message, param=param)


def check_path(path: str) -> None:
    """Refuse what releases do that forget where legs meet on these paths (sglang#35229, #35497).

    Raises:
        Refused: The path is one of them.
    """
    if path in _FORGETFUL:
        raise Refused(400, "Disaggregated request received without bootstrap room id")


async def share_room(digest: str) -> None:
    """Wait as the choices of one prompt do in releases that give them one room (sglang#30723)."""
    del digest
    await asyncio.Event().wait()


class BootstrapServer:
    """Lets decode engines into the rooms of a prefill engine."""

    def __init__(self, store: RoomStore) -> None:
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Give all paths and what answers them."""
        return [web.post(JOIN_PATH, self._join)]

    async def _join(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        same = await self._store.join(asked["rooms"], asked["prompt_digest"])
        return web.json_response({"same_prompt": same})


async def fetch_rooms(client: PeerClient, meeting: Meeting, digest: str) -> None:
    """Wait for the blocks of a prompt.

    Raises:
        TransferFailed: No bootstrap server is there, or the blocks did not come in time.
        ContractViolated: They are another prompt's.
    """
    url = URL(f"http://{meeting.host}:{meeting.port}").with_path(JOIN_PATH)
    answer = await client.ask(url, {"rooms": meeting.rooms, "prompt_digest": digest})
    if not answer["same_prompt"]:
        raise ContractViolated("legs_differ", 500, "the legs have different prompts")
