"""What Envoy Gateway says of the objects of which it has made configuration."""

from fakekube import FakeApiServer
from manifests import Object

# Where an object says what its controller thinks of it: at the top, or for each parent.
_PLACES = {
    "gatewayclasses": "",
    "gateways": "",
    "httproutes": "parents",
    "envoyextensionpolicies": "ancestors",
    "clienttrafficpolicies": "ancestors",
    "backendtrafficpolicies": "ancestors",
    "envoypatchpolicies": "ancestors",
    "securitypolicies": "ancestors",
}


def accept_all(api: FakeApiServer) -> None:
    """Accept and program all objects of which nothing has been said."""
    conditions = [
        {"type": kind, "status": "True", "reason": kind, "message": ""}
        for kind in ("Accepted", "Programmed")
    ]
    for plural, place in _PLACES.items():
        for one in api.store.objects(plural):
            if "status" not in one:
                said: Object = {"conditions": conditions}
                metadata = one["metadata"]
                api.store.patch(
                    plural,
                    metadata["name"],
                    {"status": {place: [said]} if place else said},
                    namespace=metadata.get("namespace"),
                )
