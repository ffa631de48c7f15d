"""What the bodies of legs have in common, whatever the engine: limits, and members that must go."""

from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.settings.controls import CONTROL_MEMBERS

KV_PARAMS = "kv_transfer_params"
"""The member by which vLLM's connectors, and forks of it, are told of a transfer."""

TRANSFER_MEMBERS = frozenset(member.name for member in CONTROL_MEMBERS)
"""Members that steer a transfer between engines. A client that could set them could crash a decode
engine, make it connect to any address, or read the KV blocks of another request."""

_NOT_PREFILLED = TRANSFER_MEMBERS | {"stream_options"}
_MIN_TOKENS = frozenset({"min_tokens"})
_NOT_PREFILLED_AT_TOP = _NOT_PREFILLED | _MIN_TOKENS
_NESTED_HOLDER = "vllm_xargs"
_SAMPLING_EXTRA = "extra_args"
_LOCATOR = "ec_locator"


def whole_body(request: InferenceRequest) -> Pieces:
    """Return the client's body without transfer members, for one pod that does both legs.

    A form has none: they are objects, or stand in objects, which forms cannot hold.
    """
    if request.form is not None:
        return request.edit({}, ())
    kept = None
    if request.ec_locator is not None:
        kept = b'{"%s":%s}' % (_LOCATOR.encode(), request.ec_locator)
    return request.edit(strip_transfer_members(request, kept), TRANSFER_MEMBERS)


def find_locator(request: InferenceRequest) -> bytes | None:
    """Return where a router in front has had a request's media encoded; None if it says nothing.

    Neuron's wire: `sampling_params.extra_args.kv_transfer_params.ec_locator`.
    """
    holder = request.sampling
    for name in (_SAMPLING_EXTRA, KV_PARAMS):
        raw = None if holder is None else holder.raw(name)
        if raw is None or not raw.startswith(b"{"):
            return None
        try:
            holder = Body(raw)
        except BodyInvalid:
            return None
    return None if holder is None else holder.raw(_LOCATOR)


def strip_transfer_members(
    request: InferenceRequest, kept: bytes | None = None
) -> dict[str, bytes | Pieces]:
    """Return replacements for the objects in which a client hid transfer members.

    vLLM reads `kv_transfer_params` from the extra arguments of its sampling parameters, which a
    client can also set by way of `vllm_xargs` and `sampling_params.extra_args`.

    Args:
        request: the request.
        kept: what becomes of `kv_transfer_params` in `sampling_params.extra_args`; None for
            nothing.

    Raises:
        RequestRejected: such an object has more members than any request needs.
    """
    replace: dict[str, bytes | Pieces] = {}
    if _NESTED_HOLDER in request.body.names:
        stripped = _strip(_NESTED_HOLDER, request.body.raw(_NESTED_HOLDER))
        if stripped is not None:
            replace[_NESTED_HOLDER] = stripped
    if request.sampling is not None:
        stripped = _strip(_SAMPLING_EXTRA, request.sampling.raw(_SAMPLING_EXTRA), kept)
        if stripped is not None:
            replace[str(request.endpoint.sampling)] = request.sampling.edit(
                {_SAMPLING_EXTRA: stripped}
            )
    return replace


def _strip(name: str, raw: bytes | None, kept: bytes | None = None) -> Pieces | None:
    """Return an object without transfer members; None if there is nothing to strip."""
    if raw is None or not raw.startswith(b"{"):
        return None
    try:
        holder = Body(raw)
    except BodyInvalid as error:
        message = f"{name!r} cannot be read: {error}"
        raise RequestRejected(400, "invalid_value", message, name) from None
    if not TRANSFER_MEMBERS.intersection(holder.names):
        return None
    return holder.edit(None if kept is None else {KV_PARAMS: kept}, TRANSFER_MEMBERS)


def limit_to_prefill(
    request: InferenceRequest,
) -> tuple[dict[str, bytes | Pieces], frozenset[str]]:
    """Return the edits, replaced and removed members, that make a body a prefill leg.

    One token, not streamed. `stream_options` and `min_tokens` must go: vLLM refuses the one without
    `stream` and the other above the limit. Nothing that shapes the prompt is touched.
    """
    replace = strip_transfer_members(request)
    replace["stream"] = b"false"
    endpoint = request.endpoint
    if endpoint.sampling is None:
        _limit(replace, endpoint.limits, request.body)
        return replace, _NOT_PREFILLED_AT_TOP
    stripped = replace.get(endpoint.sampling)
    sampling = request.sampling or Body(b"{}")
    if stripped is not None:
        sampling = Body(bytes(stripped))
    limits: dict[str, bytes | Pieces] = {}
    _limit(limits, endpoint.limits, sampling)
    replace[endpoint.sampling] = sampling.edit(limits, _MIN_TOKENS)
    return replace, _NOT_PREFILLED


def _limit(replace: dict[str, bytes | Pieces], names: tuple[str, ...], holder: Body) -> None:
    # The first name is set always, the others where the client used them: old engines know only
    # the first. vLLM emits the KV parameters once, so several choices are of no use.
    used = holder.names
    for name in names:
        if name in used or name is names[0]:
            replace[name] = b"1"
    if "n" in used:
        replace["n"] = b"1"
