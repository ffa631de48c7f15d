"""vLLM's NixlConnector: prefill answers with a handle, and decode gets the blocks by it.

In pull mode, decode fetches them; in push mode (Neuron's write mode), it says where they are to be
written. Which of the two an engine has is seen in its answer, and both are served one leg after the
other. Source: vLLM 0.33 `docs/features/nixl_connector_usage.md`, `nixl/pull_scheduler.py` and
`nixl/push_scheduler.py`. Current Neuron engines (`NeuronNixlConnector`) speak the same wires.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

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

_AUTO = RemoteHostRewrite.AUTO
_LONGEST_HOST = 253
_BLOCK_ID = re.compile(rb"[^\[\]{}\",\s]")
# Within a string, the closing quote of the name would have a backslash before it.
_EXPIRY_NAME = b'"remote_blocks_expiry_time"'
_EXPIRY = re.compile(_EXPIRY_NAME + rb"[ \t\n\r]*:[ \t\n\r]*([0-9]{1,15}(?:\.[0-9]{1,9})?)")
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
).removesuffix(b"}")
_RELEASE_PATH = "/v1/completions"
_REFUSED_REQUEST = Body(
    b'{"model":"pdrouter-release","prompt":[0],"max_tokens":1,"min_tokens":2,"stream":false}'
)


Handle: TypeAlias = dict[str, msgspec.Raw]
"""The members of a handle, as they stand there: most are between the engines."""

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
        if self.token_ids_limit and not placement.peer and may_ask(request, self.token_ids_limit):
            replace[ASK] = b"true"
        replace[KV_PARAMS] = b'%s,"transfer_id":%s%s}' % (
            _PREFILL_PARAMS,
            transfer_id,
            write_source(placement),
        )
        return request.edit(replace, remove)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the handle, as it is but for an unusable `remote_host`.

        In push mode it has the transfer's id, and no list of blocks: where there is one, the decode
        engine would fetch them.
        """
        replace = strip_transfer_members(request)
        answer = answers[-1]
        members = answer.members or _read(answer)
        params = self._take_handle(members, answer.pod, placement.request_id)
        handle = _write(params)
        replace[KV_PARAMS] = handle
        body = request.edit(replace, TRANSFER_MEMBERS)
        if not self.token_ids_limit or "prompt_token_ids" in params:
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
            params = self.take_handle(answer)
            handle = _write(params)
        except HandoffInvalid:
            return None  # A half-filled one could break the engine.
        if "remote_request_id" not in params:
            return None  # An engine before 0.13, of which no other understands the handle.
        return Release(_RELEASE_PATH, _REFUSED_REQUEST.edit({KV_PARAMS: handle}))

    def take_handle(self, answer: SideAnswer) -> Handle:
        """Return the handle as it is to be handed over.

        Raises:
            HandoffInvalid: it must not be handed over.
        """
        return self._take_handle(answer.members or _read(answer), answer.pod)

    def _take_handle(self, members: AnswerMembers, pod: EnginePod, transfer_id: str = "") -> Handle:
        """Return the handle of an answer.

        Args:
            members: the answer to a prefill leg.
            pod: whose it is.
            transfer_id: what to call the transfer in push mode, if the engine does not.
        """
        handle = members.kv_transfer_params
        if handle is None:
            raise HandoffInvalid("null-params", f"the prefill answer has no {KV_PARAMS}")
        push = is_push(handle)
        if push:
            _check_push(handle)
        else:
            _check_pull(handle)
        host = _read_host(handle)
        if self._must_rewrite(host):
            handle = {**handle, "remote_host": msgspec.Raw(encode(pod.ip))}
        elif not host:
            raise HandoffInvalid("incomplete-params", "remote_host is empty")
        if push:
            handle = {name: raw for name, raw in handle.items() if name != "remote_block_ids"}
            if transfer_id:
                handle.setdefault("transfer_id", msgspec.Raw(encode(transfer_id)))
        return handle

    def _must_rewrite(self, host: str) -> bool:
        if self.remote_host_rewrite is _AUTO:
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
    """Read what an answer has that is handed over.

    Raises:
        HandoffInvalid: it cannot be read.
    """
    try:
        return read_answer(answer.body)
    except AnswerInvalid as error:
        message = f"the prefill answer cannot be read: {error}"
        raise HandoffInvalid("invalid-answer", message) from None


def is_push(handle: Handle) -> bool:
    """Return whether the prefill engine writes the blocks to where decode wants them."""
    return handle.get("transfer_mode") == _PUSH


def _check_pull(handle: Handle) -> None:
    """Check what a decode engine needs before it commits itself to a transfer.

    vLLM's decode scheduler parks a request whose parameters are incomplete and never wakes it, and
    an empty block list breaks an assertion in the engine core: neither must leave the router.

    Raises:
        HandoffInvalid: a member is missing, null or empty.
    """
    if handle.get("do_remote_prefill") != _TRUE:
        raise HandoffInvalid("incomplete-params", "do_remote_prefill is not true")
    if not _has_blocks(handle.get("remote_block_ids", _NULL)):
        raise HandoffInvalid("empty-blocks", "remote_block_ids names no block")
    _check_present(handle, _NEEDED)
    # Engines before vLLM 0.13 do not know the id; an engine that knows it never leaves it empty.
    if handle.get("remote_request_id") in _EMPTY:
        raise HandoffInvalid("incomplete-params", "remote_request_id is empty")


def _check_push(handle: Handle) -> None:
    """Check what a decode engine needs to say where it wants the blocks.

    Raises:
        HandoffInvalid: a member is missing, or there is nothing to be written: the engine would
            wait for it.
    """
    if handle.get("do_remote_prefill") != _TRUE:
        raise HandoffInvalid("incomplete-params", "do_remote_prefill is not true")
    listed = handle.get("remote_block_ids", _NULL)
    if handle.get("remote_num_tokens") == _ZERO or (listed != _NULL and not _has_blocks(listed)):
        raise HandoffInvalid("empty-blocks", "the prefill engine holds no block")
    _check_present(handle, _NEEDED_FOR_PUSH)


def _check_present(handle: Handle, names: Iterable[str]) -> None:
    for name in names:
        if handle.get(name, _NULL) in _EMPTY:
            raise HandoffInvalid("incomplete-params", f"{name} is missing or empty")


def _read_host(handle: Handle) -> str:
    """Return `remote_host`; it may be empty, since it can be rewritten.

    Raises:
        HandoffInvalid: it is missing, null or not a string.
    """
    try:
        return _decode_host(handle.get("remote_host", _NULL))
    except (msgspec.MsgspecError, UnicodeError):
        raise HandoffInvalid("incomplete-params", "remote_host is not a string") from None


def _write(handle: Handle) -> bytes:
    """Return a handle as JSON.

    Raises:
        HandoffInvalid: a text in it is none.
    """
    written = encode(handle)
    try:
        check_utf_8(written)
    except BodyInvalid as error:
        raise HandoffInvalid("invalid-params", f"{KV_PARAMS}: {error}") from None
    return written


def _has_blocks(raw: msgspec.Raw) -> bool:
    """Return whether a list of block ids, flat or one list per KV cache group, names a block.

    Only brackets are looked behind: the ids themselves are the engines' business.
    """
    return raw != _NULL and _BLOCK_ID.search(raw) is not None
