"""What Envoy shows the router of a request and its response, and what if the router is away."""

from collections.abc import Iterator

from pdrouter.tools.doctor.checks.bypasses import reaches_engines
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation, find_patched_ext_procs
from pdrouter.tools.doctor.objects.envoy_gateway import PatchPolicy
from pdrouter.tools.doctor.patches import dig, find_values


def _find_unbuffered_requests(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        request = attachment.ext_proc.processing_mode.request
        if request is None or request.body != "Buffered":
            shown = "no request" if request is None else f"request bodies as {request.body}"
            yield Defect(
                attachment.policy.ref,
                attachment.field("processingMode.request.body"),
                f"Envoy sends {shown}",
                "set it to Buffered",
            )


def _find_streamed_responses(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        mode = attachment.ext_proc.processing_mode
        if mode.response and mode.response.body and not mode.allow_mode_override:
            yield Defect(
                attachment.policy.ref,
                attachment.field("processingMode.response.body"),
                f"response bodies are sent ({mode.response.body}), and the router may not stop it",
                "remove `body`, or set processingMode.allowModeOverride to true",
            )


def _find_open_doors(installation: Installation, *, original_dst: bool) -> Iterator[Defect]:
    for attachment in installation.attachments:
        if attachment.ext_proc.fail_open and bool(attachment.original_dst) is original_dst:
            yield Defect(
                attachment.policy.ref,
                attachment.field("failOpen"),
                "requests pass when the router does not answer",
                "set it to false",
            )


def _find_skipped_trailers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        # Envoy Gateway has no field for trailers; the router asks for them where it may.
        if attachment.ext_proc.processing_mode.allow_mode_override or any(
            attachment.filter_name in place and value == "SEND"
            for policy in installation.snapshot.of(PatchPolicy)
            for _, place, value in find_values(policy, "request_trailer_mode")
        ):
            continue
        if any(
            reaches_engines(installation, route, rule)
            for route in attachment.routes
            for rule in route.spec.rules
        ):
            yield Defect(
                attachment.policy.ref,
                attachment.field("processingMode.allowModeOverride"),
                "Envoy does not send trailers, and the router may not ask for them",
                "set it to true",
            )
    for patched in find_patched_ext_procs(installation.snapshot):
        mode = patched.text("processing_mode", "request_trailer_mode")
        if mode != "SEND" and dig(patched.content, "allow_mode_override") is not True:
            yield Defect(
                patched.policy,
                f"{patched.field}.processing_mode.request_trailer_mode",
                f"it is {mode}" if mode else "it is not set: SKIP",
                "set it to SEND",
            )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "request-body-not-buffered",
        Severity.ERROR,
        "The router does not get request bodies as a whole.",
        "It reads the model and rewrites the body for the decode leg; both need all of the body in "
        "one message.",
        _find_unbuffered_requests,
    ),
    Check(
        "response-body-streamed",
        Severity.WARNING,
        "Response bodies go through the router.",
        "That is a message for every token: several times the CPU in Envoy and in the router.",
        _find_streamed_responses,
    ),
    Check(
        "fail-open-steered",
        Severity.ERROR,
        "Requests pass without the router where a header chooses the address.",
        "Nobody removes the client's own header then: it can make Envoy connect to any address "
        "that Envoy reaches.",
        lambda installation: _find_open_doors(installation, original_dst=True),
    ),
    Check(
        "fail-open",
        Severity.WARNING,
        "Requests pass without the router.",
        "They reach a decode pod without a prefill, unchecked, with whatever transfer fields the "
        "client has put into the body.",
        lambda installation: _find_open_doors(installation, original_dst=False),
    ),
    Check(
        "request-trailers-skipped",
        Severity.WARNING,
        "The router does not see a request's trailers.",
        "A request of headers and trailers alone has no body message: it goes on to any pod, and "
        "all that the router can do is to keep the pod's answer back.",
        _find_skipped_trailers,
    ),
)
