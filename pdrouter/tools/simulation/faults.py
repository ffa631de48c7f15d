"""Faults that an engine shows on demand."""

from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from pdrouter.tools.simulation.legs import SimulatedLeg
from pdrouter.tools.simulation.prompts import Members


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way of failing, and the requests it applies to.

    Several members may be set; they take effect in the order in which they stand here.

    Attributes:
        slow_s: Wait this long, in seconds, before anything else.
        hang: Never answer; the request ends when the client leaves.
        drop: Close the connection without an answer.
        status: Answer with this HTTP status and vLLM's error envelope.
        retry_after: Value of the header `retry-after` of that answer.
        null_params: Answer the prefill leg with `kv_transfer_params: null`.
        empty_blocks: Answer the prefill leg with `remote_block_ids: []`.
        omit_params: Leave these members out of the prefill leg's `kv_transfer_params`.
        drop_after_tokens: Close the connection of a stream after so many tokens; it has no
            effect on an answer that is not streamed.
        hang_after_head: Send nothing but the headers of a stream.
        times: Requests to which the fault applies; without it, all until it is cleared.
        path: Only requests to this path. Without it, every POST to the engine's own API, but
            not `/health`, `/metrics` or `/simulation/*`.
        model: Only requests for this model or adapter.
        leg: Only requests that ask for this leg.
        forces_tool: Only requests whose `tool_choice` demands a call.
    """

    slow_s: Annotated[float, Meta(ge=0)] = 0.0
    hang: bool = False
    drop: bool = False
    status: Annotated[int, Meta(ge=400, le=599)] | None = None
    retry_after: str | None = None
    null_params: bool = False
    empty_blocks: bool = False
    omit_params: tuple[str, ...] = ()
    drop_after_tokens: Annotated[int, Meta(ge=0)] | None = None
    hang_after_head: bool = False
    times: Annotated[int, Meta(ge=1)] | None = None
    path: str | None = None
    model: str | None = None
    leg: SimulatedLeg | None = None
    forces_tool: bool = False

    def applies_to(self, members: Members, leg: SimulatedLeg | None) -> bool:
        """Say whether the fault applies to a body that asks for this leg."""
        return (
            (self.model is None or members.get("model") == self.model)
            and (self.leg is None or leg is self.leg)
            and (not self.forces_tool or _forces_tool(members))
        )


NO_FAULT = Fault()
_NO_MEMBERS: Members = MappingProxyType({})


class FaultBoard:
    """The faults in force, the first that applies wins."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = list(faults)

    def set(self, *faults: Fault) -> None:
        """Put these faults in force instead of all others."""
        self._faults = list(faults)

    def clear(self) -> None:
        """Behave well from now on."""
        self._faults = []

    @property
    def current(self) -> tuple[Fault, ...]:
        """The faults in force, `times` being what is left."""
        return tuple(self._faults)

    def take(
        self,
        path: str,
        *,
        is_api_call: bool,
        members: Members = _NO_MEMBERS,
        leg: SimulatedLeg | None = None,
    ) -> Fault:
        """Use up one application of the first fault that applies to a request.

        Args:
            path: The request's path, without query.
            is_api_call: Whether faults that name no path apply to it.
            members: The decoded body.
            leg: The leg that it asks for.

        Returns:
            The fault, or one without effect.
        """
        for index, fault in enumerate(self._faults):
            here = fault.path == path or (fault.path is None and is_api_call)
            if here and fault.applies_to(members, leg):
                if fault.times == 1:
                    del self._faults[index]
                elif fault.times is not None:
                    self._faults[index] = msgspec.structs.replace(fault, times=fault.times - 1)
                return fault
        return NO_FAULT


def _forces_tool(members: Members) -> bool:
    choice = members.get("tool_choice")
    if isinstance(choice, dict):
        # Anthropic has objects for `auto` and `none` too.
        return choice.get("type") not in ("auto", "none")
    return choice == "required"


def parse_faults(document: bytes) -> tuple[Fault, ...]:
    """Read one fault, or a list of faults, from JSON.

    Raises:
        msgspec.ValidationError: A member is unknown or out of range; the message names it.
        msgspec.DecodeError: It is not JSON.
    """
    decoded = msgspec.json.decode(document)
    many = decoded if isinstance(decoded, list) else [decoded]
    return tuple(msgspec.convert(many, list[Fault]))


def parse_assignments(assignments: list[str]) -> tuple[Fault, ...]:
    """Read one fault from `KEY=VALUE` words, as the command line has them.

    A word without `=` sets a switch, as in `hang`; `omit_params` takes names with commas between.

    Raises:
        msgspec.ValidationError: A member is unknown or out of range; the message names it.
    """
    if not assignments:
        return ()
    members: dict[str, object] = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        members[key] = value.split(",") if key == "omit_params" else value or "true"
    return (msgspec.convert(members, Fault, strict=False),)
