"""vLLM's P2P tier: engines give each other KV blocks out of main memory.

With the OffloadingConnector alone, both legs are sent at once, and meet by an id: the prefill
engine has its blocks held under it, the decode engine asks for them at the tier's port. Either may
come first. Beside that, and beside another connector that hands blocks over (MultiConnector), the
prefill engine can have the beginning of a prompt from any other engine, its source. Sources: vLLM
`docs/features/kv_offloading_usage.md`, llm-d `connector_p2p.go`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pdrouter.engines.leg_bodies import (
    KV_PARAMS,
    TRANSFER_MEMBERS,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.engines.split import (
    PREFILL_DECODE,
    EnginePod,
    Leg,
    Order,
    Placement,
    SideAnswer,
    Split,
)
from pdrouter.openai.body import encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

DEFAULT_PORT = 7777
"""Where the tier of an engine's first rank is, unless its pod says another port."""


@dataclass(frozen=True, slots=True)
class P2p(Split):
    """The wire of engines that have an OffloadingConnector with a P2P tier, and nothing else."""

    order: Order = Order.TOGETHER
    takes_source: bool = True
    name: str = "offloading"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    fits: frozenset[str] = frozenset()

    @property
    def recomputes(self) -> bool:
        """Return True: after 30 s, the decode engine does."""
        return True

    @property
    def trusts_head(self) -> bool:
        """Return False: the answer is short, and there as soon as its head is."""
        return False

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id under which its blocks are held."""
        del leg  # There is one.
        replace, remove = limit_to_prefill(request)
        replace[KV_PARAMS] = b'{"remote_decoder":{"kv_request_id":%s}%s}' % (
            encode(_name_transfer(placement)),
            write_source(placement),
        )
        return request.edit(replace, remove)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the place of the blocks, and that id."""
        del answers  # They say nothing of it.
        replace = strip_transfer_members(request)
        prefill = placement.pods[Leg.PREFILL]
        replace[KV_PARAMS] = encode(
            {"remote_prefiller": _point_to(prefill, _name_transfer(placement))}
        )
        return request.edit(replace, TRANSFER_MEMBERS)


def write_source(placement: Placement) -> bytes:
    """Return the further member by which a prefill engine is told of its source, if it has one.

    It asks under an id of its own.
    """
    if placement.source is None:
        return b""
    return b',"remote_kv_source":%s' % encode(
        _point_to(placement.source, f"src-{placement.request_id}")
    )


def _name_transfer(placement: Placement) -> str:
    return f"kv-{placement.request_id}"


def _point_to(pod: EnginePod, kv_request_id: str) -> dict[str, str | int]:
    """Return where the tier of an engine answers: each rank has its port, next to the others'."""
    port = (pod.bootstrap_port or DEFAULT_PORT) + pod.index
    return {"kv_request_id": kv_request_id, "remote_host": pod.ip, "remote_port": port}
