"""vLLM's NixlConnector: prefill answers with a handle, and decode gets the blocks by it.

In pull mode, decode fetches them; in push mode (Neuron's write mode), it says where they are to be
written. Which of the two an engine has is seen in its answer, and both are served one leg after the
other. Source: vLLM 0.33 `docs/features/nixl_connector_usage.md`, `nixl/pull_scheduler.py` and
`nixl/push_scheduler.py`. Current Neuron engines (`NeuronNixlConnector`) speak the same wires.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from pdrouter.engines.leg_bodies import (
    KV_PARAMS,
    TRANSFER_MEMBERS,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.engines.split import (
    PREFILL_DECODE,
    EnginePod,
    HandoffInvalid,
    Leg,
    Order,
    Placement,
    Release,
    SideAnswer,
    Split,
)
from pdrouter.engines.vllm.p2p import write_source
from pdrouter.engines.vllm.prompt_tokens import ASK, add_ids, may_ask
from pdrouter.openai.body import Body, BodyInvalid, check_utf_8, encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.usage import AnswerInvalid, AnswerMembers, read_answer
from pdrouter.settings.choices import RemoteHostRewrite

_LONGEST_HOST = 253
_BLOCK_ID = re.compile(rb"[^\[\]{}\",\s]")
# Within a string, the closing quote of the name would have a backslash before it.
_EXPIRY_NAME = b'"remote_blocks_expiry_time"'
_EXPIRY = re.compile(_EXPIRY_NAME + rb"[ \t\n\r]*:[ \t\n\r]*([0-9]{1,15}(?:\.[0-9]{1,9})?)")
_ABSENT = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")
_TRUE = msgspec.Raw(b"true")
_ZERO = msgspec.Raw(b"0")
_PUSH = msgspec.Raw(b'"push"')
_EMPTY = (_NULL, msgspec.Raw(b'""'))
_NEEDED = ("remote_engine_id", "remote_port")
_NEEDED_FOR_PUSH = (*_NEEDED, "remote_request_id", "tp_size")
"""What push mode's scheduler looks up without a default."""
_PREFILL_PARAMS = encode(
    {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
)
_RELEASE_PATH = "/v1/completions"
_REFUSED_REQUEST = Body(
    b'{"model":"pdrouter-release","prompt":[0],"max_tokens":1,"min_tokens":2,"stream":false}'
)


class Params(msgspec.Struct):
    """What a decode engine must find in a handle; all else is between the engines."""

    do_remote_prefill: msgspec.Raw = _ABSENT
    remote_block_ids: msgspec.Raw = _ABSENT
    remote_engine_id: msgspec.Raw = _ABSENT
    remote_port: msgspec.Raw = _ABSENT
    remote_request_id: msgspec.Raw = _ABSENT
    remote_host: msgspec.Raw = _NULL
    tp_size: msgspec.Raw = _ABSENT
    remote_num_tokens: msgspec.Raw = _ABSENT
    transfer_mode: msgspec.Raw = _ABSENT
    transfer_id: msgspec.Raw = _ABSENT
    prompt_token_ids: msgspec.Raw = _ABSENT

    @property
    def push(self) -> bool:
        """Whether the prefill engine writes the blocks to where decode wants them."""
        return self.transfer_mode == _PUSH


_decode_params = msgspec.json.Decoder(Params).decode
_decode_host = msgspec.json.Decoder(str).decode


@dataclass(frozen=True, slots=True)
class NixlPull(Split):
    """The upstream NIXL wire (aibrix calls it `shfs`).

    Attributes:
        remote_host_rewrite: when to replace `remote_host` in a handle.
        token_ids_limit: bytes of a decode body up to which it has the ids of the prompt's tokens; 0
            where they are not asked for.
        takes_source: whether engines have a P2P tier too (MultiConnector).
    """

    remote_host_rewrite: RemoteHostRewrite = RemoteHostRewrite.AUTO
    token_ids_limit: int = 0
    takes_source: bool = False
    name: str = "nixl"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.SERIAL
    fits: frozenset[str] = frozenset()

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, which asks the engine to keep the KV blocks."""
        del leg  # There is one.
        replace, remove = limit_to_prefill(request)
        # Which mode the engine is in shows in its answer; in push mode, the legs meet by this id.
        transfer_id = encode(placement.request_id)
        # Beside a last leg that is sent at once, nobody reads them.
        if not placement.peer and may_ask(request, self.token_ids_limit):
            replace[ASK] = b"true"
        replace[KV_PARAMS] = b'%s,"transfer_id":%s%s}' % (
            _PREFILL_PARAMS[:-1],
            transfer_id,
            write_source(placement),
        )
        return request.edit(replace, remove)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the handle, verbatim but for an unusable `remote_host`.

        In push mode it has the transfer's id, and no list of blocks: where there is one, the decode
        engine would fetch them.
        """
        replace = strip_transfer_members(request)
        answer = answers[-1]
        members = _read(answer)
        handle, params = self._take_handle(members, answer.pod, placement.request_id)
        replace[KV_PARAMS] = handle
        body = request.edit(replace, TRANSFER_MEMBERS)
        if not self.token_ids_limit or params.prompt_token_ids is not _ABSENT:
            return body
        told = add_ids(handle, members.prompt_token_ids)
        if told is None or len(body) + len(told) - len(handle) > self.token_ids_limit:
            return body
        replace[KV_PARAMS] = told
        return request.edit(replace, TRANSFER_MEMBERS)

    def find_expiry(self, answer: SideAnswer) -> float | None:
        """Return `remote_blocks_expiry_time`: upstream prefill engines leave it null."""
        if _EXPIRY_NAME not in answer.body:
            return None
        found = _EXPIRY.search(answer.body)
        return None if found is None else float(found[1])

    def release(self, answer: SideAnswer) -> Release | None:
        """Return a request that a decode engine refuses, upon which it has the blocks freed.

        From 0.21 on, vLLM tells the prefill engine of a request with a handle that it refuses
        after its request model has read it and before its scheduler gets it
        (`_with_kv_transfer_rejection_cleanup`); older ones just refuse it. So it must be well
        formed, and wrong twice over: no engine has such a model, and where names do not matter
        (`VLLM_SKIP_MODEL_NAME_VALIDATION`) the limits contradict each other. Were it carried out
        nevertheless, its one token of prompt could not get into the cache of anybody's prefixes.
        """
        try:
            handle, params = self.take_handle(answer)
        except HandoffInvalid:
            return None  # A half-filled one could break the engine.
        if params.remote_request_id is _ABSENT:
            return None  # An engine before 0.13, of which no other understands the handle.
        return Release(_RELEASE_PATH, _REFUSED_REQUEST.edit({KV_PARAMS: handle}))

    def take_handle(
        self, answer: SideAnswer, transfer_id: str = ""
    ) -> tuple[bytes | Pieces, Params]:
        """Return the handle as it is to be handed over, and what it says.

        Args:
            answer: the answer to a prefill leg.
            transfer_id: what to call the transfer in push mode, if the engine does not.

        Raises:
            HandoffInvalid: it must not be handed over.
        """
        return self._take_handle(_read(answer), answer.pod, transfer_id)

    def _take_handle(
        self, members: AnswerMembers, pod: EnginePod, transfer_id: str
    ) -> tuple[bytes | Pieces, Params]:
        raw = bytes(members.kv_transfer_params)
        try:
            check_utf_8(raw)
            params = _decode_params(raw)
        except (BodyInvalid, msgspec.MsgspecError, RecursionError) as error:
            # The answer was read where fewer calls were under way, which may have fewer levels.
            raise HandoffInvalid("invalid-params", f"{KV_PARAMS}: {error}") from None
        push = params.push
        if push:
            _check_push(params)
        else:
            _check_params(params)
        host = _read_host(params)
        replace: dict[str, bytes | Pieces] = {}
        if self._must_rewrite(host):
            replace["remote_host"] = encode(pod.ip)
        elif not host:
            raise HandoffInvalid("incomplete-params", "remote_host is empty")
        if push:
            if params.transfer_id is _ABSENT and transfer_id:
                replace["transfer_id"] = encode(transfer_id)
            return _edit(raw, replace, {"remote_block_ids"}), params
        return _edit(raw, replace) if replace else raw, params

    def _must_rewrite(self, host: str) -> bool:
        if self.remote_host_rewrite is RemoteHostRewrite.AUTO:
            return is_unusable_host(host)
        return self.remote_host_rewrite is RemoteHostRewrite.ALWAYS


def is_unusable_host(host: str) -> bool:
    """Return whether a host means the machine on which it is read, or none."""
    # What is longer is no host, and must not stay in memory: an engine may say it.
    return len(host) <= _LONGEST_HOST and _is_unusable(host)


# Engines are few, and each says the same host with every answer.
@lru_cache(maxsize=1024)
def _is_unusable(host: str) -> bool:
    if host.lower() in {"", "localhost"}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def _read(answer: SideAnswer) -> AnswerMembers:
    """Return what an answer has that is handed over, as it stands there.

    Raises:
        HandoffInvalid: there is none.
    """
    try:
        members = answer.members or read_answer(answer.body)
    except AnswerInvalid as error:
        message = f"the prefill answer is no JSON object: {error}"
        raise HandoffInvalid("invalid-answer", message) from None
    if members.kv_transfer_params == _NULL:
        raise HandoffInvalid("null-params", f"the prefill answer has no {KV_PARAMS}")
    return members


def _check_params(params: Params) -> None:
    """Check what a decode engine needs before it commits itself to a transfer.

    vLLM's decode scheduler parks a request whose parameters are incomplete and never wakes it, and
    an empty block list breaks an assertion in the engine core: neither must leave the router.

    Raises:
        HandoffInvalid: a member is missing, null or empty.
    """
    if params.do_remote_prefill != _TRUE:
        raise HandoffInvalid("incomplete-params", "do_remote_prefill is not true")
    if not _has_blocks(params.remote_block_ids):
        raise HandoffInvalid("empty-blocks", "remote_block_ids names no block")
    _check_present(params, _NEEDED)
    # Engines before vLLM 0.13 do not know the id; an engine that knows it never leaves it empty.
    if params.remote_request_id in _EMPTY:
        raise HandoffInvalid("incomplete-params", "remote_request_id is empty")


def _check_push(params: Params) -> None:
    """Check what a decode engine needs to say where it wants the blocks.

    Raises:
        HandoffInvalid: a member is missing, or there is nothing to be written: the engine would
            wait for it.
    """
    if params.do_remote_prefill != _TRUE:
        raise HandoffInvalid("incomplete-params", "do_remote_prefill is not true")
    listed = params.remote_block_ids not in (_ABSENT, _NULL)
    if params.remote_num_tokens == _ZERO or (listed and not _has_blocks(params.remote_block_ids)):
        raise HandoffInvalid("empty-blocks", "the prefill engine holds no block")
    _check_present(params, _NEEDED_FOR_PUSH)


def _check_present(params: Params, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(params, name)
        if value is _ABSENT or value in _EMPTY:
            raise HandoffInvalid("incomplete-params", f"{name} is missing or empty")


def _read_host(params: Params) -> str:
    """Return `remote_host`; it may be empty, since it can be rewritten.

    Raises:
        HandoffInvalid: it is missing, null or not a string.
    """
    try:
        return _decode_host(params.remote_host)
    except msgspec.MsgspecError:
        raise HandoffInvalid("incomplete-params", "remote_host is not a string") from None


def _edit(
    raw: bytes, replace: Mapping[str, bytes | Pieces], remove: Collection[str] = ()
) -> Pieces:
    """Return a handle with some members replaced, added or removed.

    Raises:
        HandoffInvalid: it has more members than any handle.
    """
    try:
        return Body(raw).edit(replace, remove)
    except BodyInvalid as error:
        raise HandoffInvalid("invalid-params", f"{KV_PARAMS}: {error}") from None


def _has_blocks(raw: msgspec.Raw) -> bool:
    """Return whether a list of block ids, flat or one list per KV cache group, names a block.

    Only brackets are looked behind: the ids themselves are the engines' business.
    """
    return raw != _NULL and _BLOCK_ID.search(raw) is not None
